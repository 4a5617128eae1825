"""A trained model for use without this package.

python -m crest_jax.export --workdir=DIR --output=DIR [--generation=N]

The folder then has:
  model.jax     the model as a serialised JAX function, its weights within, for CPU, GPU and TPU:
                    from jax import export
                    model = export.deserialize(pathlib.Path("model.jax").read_bytes())
                    logits = model.call(images)
                images are uint8 of shape [batch, height, width, channels], any batch; logits are
                float32 of shape [batch, classes]
  model.json    class names in the order of the logits, image_shape, p(y) of what this generation
                was trained on (logits - log p(y) are the logit-adjusted ones), generation, and the
                run's config
  checkpoint/   the weights alone, {"params", "batch_stats"}, as Orbax's StandardCheckpointer saves
"""

import argparse

import jax
import orbax.checkpoint as ocp
from etils.epath import Path
from jax import export as jax_export

from crest_jax import augment, backend, command, files, trained, workdir
from crest_jax.config import to_plain
from crest_jax.errors import WorkdirError
from crest_jax.trained import Trained

DESCRIPTION = "model.json"  # written last
PLATFORMS = ("cpu", "cuda", "tpu")


def serialise(model: Trained) -> bytes:
    """Returns the model as a function of a batch of any size, for all platforms."""
    variables = {"params": model.params, "batch_stats": model.batch_stats}

    def logits(images):
        return model.model.apply(variables, augment.rescale(images), train=False)

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), "uint8")
    return bytes(jax_export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())


def export(run: Path, output: Path, *, generation: int | None = None) -> Trained:
    """Writes a run's model to a new folder, which an error removes again; returns the model.

    Args:
      run: the run's folder.
      output: must not exist yet.
      generation: which, from 1; the last that is finished by default.

    Raises:
      WorkdirError: `output` exists or cannot be made; and as `trained.load`.
      ConfigError: as `trained.load`.
    """
    if output.exists():
        advice = "choose another folder"
        if not (output / DESCRIPTION).exists():
            advice += f"; it has no {DESCRIPTION}, and may be what a killed export has left"
        raise WorkdirError(f"--output={output} exists already: {advice}")
    files.check_writable(output)
    model = trained.load(run, generation=generation)
    content = serialise(model)
    try:
        output.mkdir()
    except files.failures() as error:
        raise WorkdirError(f"--output={output} cannot be made ({files.reason(error)})") from error
    try:
        files.write_bytes(output / "model.jax", content)
        with ocp.StandardCheckpointer() as checkpointer:
            weights = {"params": model.params, "batch_stats": model.batch_stats}
            checkpointer.save(files.absolute(output) / "checkpoint", weights)
        description = {
            "class_names": list(model.class_names),
            "image_shape": list(model.image_shape),
            "class_distribution": model.class_distribution.tolist(),
            "generation": model.generation,
            "environment": workdir.environment(),
            "config": to_plain(workdir.read_config(run)),
        }
        files.write_json(output / DESCRIPTION, description)
    except BaseException:
        output.rmtree(missing_ok=True)
        raise
    return model


@command.entry
def main() -> None:
    """Exports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=files.given, required=True, help="a run's folder")
    parser.add_argument("--output", type=files.given, required=True, help="the folder to make")
    parser.add_argument("--generation", type=int, help="from 1; the last by default")
    arguments = parser.parse_args()
    files.check_name(arguments.output, "--output")
    backend.start()
    model = export(arguments.workdir, arguments.output, generation=arguments.generation)
    print(f"{arguments.output}: generation {model.generation}, {len(model.class_names)} classes")


if __name__ == "__main__":
    main()
