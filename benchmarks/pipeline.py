"""Measure how fast the input pipeline is alone, and how long training waits for it.

python benchmarks/pipeline.py [--size 10-1] [--batch 16] [--steps 16]
python benchmarks/pipeline.py --size 28-2 --batch 64 --dtype bfloat16 --steps 500     # the paper's

Alone, the batches of `data.pipeline` are taken one after another and not used. The loop is
`crest_jax.training.train` without evaluation. It waits from the moment it asks for the batches of
the next steps until they are on their way to the devices. The first batches, which start the
pipeline, are left out. Rates and times are medians of the samples; a sample's wait is the mean over
its batches.
"""

import argparse
import statistics
from collections.abc import Callable

import end_to_end
import measure

from crest_jax.data.records import Images


def alone(setting: measure.Setting, everything: Images) -> Callable[[int], None]:
    """Return a function that takes batches and does nothing with them."""
    batches = end_to_end.pipeline_of(setting, everything, start=0, stop=2**30)

    def run(calls: int) -> None:
        for _ in range(calls):
            next(batches)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.add_settings(parser, sizes=["10-1"])
    parser.add_argument(
        "--steps", type=int, default=16, help="steps of a sample; at least twice --at-once"
    )
    arguments = parser.parse_args()
    measure.print_heading(
        *measure.SETTING, "batches/s alone", "images/s alone",
        f"loop on {measure.on_what()}: ms a step", "of which waiting", "",
    )  # fmt: skip
    for setting in measure.settings_of(arguments):
        everything = end_to_end.noise(setting, end_to_end.ALL)
        ways = {"alone": alone(setting, everything)}
        seconds = statistics.median(measure.interleaved(ways, arguments.samples)["alone"])
        compiled = measure.compile_steps(setting)
        loops = [
            end_to_end.run_loop(compiled, setting, everything, arguments.steps)
            for _ in range(1 + arguments.samples)
        ][1:]  # the first compiles the rest of the loop
        of_loop = statistics.median(loop.seconds for loop in loops)
        waiting = statistics.median(statistics.mean(loop.waits) for loop in loops) / setting.at_once
        measure.print_row(
            setting,
            f"{1 / seconds:,.0f}",
            f"{setting.batch * (1 + setting.ratio) / seconds:,.0f}",
            f"{1000 * of_loop:.1f}",
            f"{1000 * waiting:.2f}",
            f"{100 * waiting / of_loop:.2f} %",
        )


if __name__ == "__main__":
    main()
