"""The input pipeline: how fast it is alone, and how long training waits for it.

python benchmarks/pipeline.py [--size 10-1] [--batch 16] [--steps 16]
python benchmarks/pipeline.py --size 28-2 --batch 64 --dtype bfloat16 --steps 500     # the paper's

Alone, `data.pipeline` gives one batch after the other to nobody. In the loop, which is
`crest_jax.training.train` without evaluation, it waits for the batches of the next steps
from the moment it asks until they are on their way to the devices; the first ones, which start the
pipeline, are left out. Medians of the samples; of waiting, the median of their means.
"""

import argparse
import statistics
from collections.abc import Callable

import end_to_end
import measure

from crest_jax.data.records import Images


def alone(setting: measure.Setting, everything: Images) -> Callable[[int], None]:
    """A way to take batches, and do nothing with them."""
    batches = end_to_end.pipeline_of(setting, everything, start=0, stop=2**30)

    def run(calls: int) -> None:
        for _ in range(calls):
            next(batches)

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.add_settings(parser, sizes=["10-1"])
    parser.add_argument(
        "--steps", type=int, default=16, help="of a sample; two times --at-once or more"
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
        ][1:]  # the first compiles what is around the step
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
