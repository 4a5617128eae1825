"""Apply logit adjustment with other values of tau to the checkpoints of a finished run.

python -m crest_jax.adjust --workdir=DIR [--tau TAU ...] [--output FILE.json]

Nothing is trained: the checkpoints of each generation's last evaluations classify the test set
again by `argmax_y f_y(x) - tau log p(y)` (Menon et al., 2021), where p(y) is the class distribution
of the labels that the generation was trained on, including pseudo-labels. The mean over these
evaluations is the value that results.json reports as `accuracy_logit_adjusted` for the run's own
tau, and as `accuracy` for tau = 0. The file of --output numbers generations from 0, as results.json
does.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from crest_jax import accuracy, backend, command, files, program, trained
from crest_jax.data import records
from crest_jax.data.records import Images
from crest_jax.layout import RunFolder
from crest_jax.report import text
from crest_jax.trained import Trained

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)


def adjust(folder: Path, taus: Sequence[float]) -> dict[str, Any]:
    """Apply logit adjustment to every finished generation of a run.

    Args:
      folder: the run's folder.
      taus: strengths of logit adjustment, each at least 0.

    Returns:
      The class names, and for each finished generation p(y) and, for each tau, the class-balanced
      accuracy and the per-class recall and precision, in per cent, pooled over the last
      evaluations.

    Raises:
      ConfigError: A tau is not usable, or the run's config is not usable on these devices.
      WorkdirError: `folder` is not a run, no generation of it is finished, or a checkpoint is
        missing or damaged.
      DataError: The test split is damaged.
      UnavailableError: A file cannot be read at the moment.
    """
    for tau in taus:
        trained.check_tau(tau)
    config = trained.config_of(folder)
    last = trained.load(folder)
    test: Iterable[Images] = records.ImageChunks(
        RunFolder(folder).splits.test, view=last.view, size=config.eval_batch_size
    )
    if not config.data.stream:
        test = list(test)

    def adjusted(generation: int) -> dict[str, Any]:
        models = (
            last.with_weights_of(trained.load(folder, generation=generation, step=step))
            for step in program.schedule_of(config).reported
        )
        prior = trained.class_distribution(folder, generation)
        return {
            "generation": generation - 1,
            "class_distribution": prior.tolist(),
            "adjusted": _adjusted(models, test, taus, len(last.class_names)),
        }

    of_generations = [adjusted(each) for each in trained.finished_generations(folder)]
    return {"class_names": list(last.class_names), "generations": of_generations}


def _adjusted(
    models: Iterable[Trained],
    test: Iterable[Images],
    taus: Sequence[float],
    classes: int,
) -> list[dict[str, Any]]:
    """Return the pooled results of a generation's last evaluations for each tau."""
    confusions = np.zeros((len(taus), classes, classes), np.int64)
    for model in models:
        for _, images, labels in test:
            logits = model.logits(images, batch_size=model.eval_batch_size)
            for number, tau in enumerate(taus):
                predicted = model.predictions(logits, tau).labels
                confusions[number] += accuracy.confusion_matrix(labels, predicted, classes)
    return [
        {
            "tau": tau,
            "accuracy": accuracy.class_balanced_accuracy(confusion),
            "per_class_recall": accuracy.per_class_recall(confusion),
            "per_class_precision": accuracy.per_class_precision(confusion),
        }
        for tau, confusion in zip(taus, confusions, strict=True)
    ]


@command.entry
def main() -> None:
    """Print a table for each generation."""
    parser = command.parser(__doc__)
    parser.add_argument("--workdir", type=files.given, required=True, help="a run's folder")
    parser.add_argument("--tau", type=float, nargs="+", default=TAUS, help="each at least 0")
    parser.add_argument("--output", type=files.given, help="also write the results, as JSON")
    arguments = parser.parse_args()
    if arguments.output:
        files.check_writable(arguments.output)
    backend.start()
    adjusted = adjust(arguments.workdir, arguments.tau)
    for generation in adjusted["generations"]:
        print(text.adjustment_table(generation, adjusted["class_names"]), flush=True)
    if arguments.output:
        files.write_json(arguments.output, adjusted)


if __name__ == "__main__":
    main()
