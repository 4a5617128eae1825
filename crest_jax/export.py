"""Export a trained model for use without this package.

python -m crest_jax.export --workdir=DIR --output=DIR [--generation=N]

The output folder has these files:
  model.safetensors  The weights in float32, under names such as params/Dense_0/kernel. Any version
                     of the package safetensors reads them, so this is the form to keep.
  model.json         All else that is needed to compute logits from them: the architecture, the
                     preprocessing of images, and the class names in the order of the logits. Also
                     p(y) of the labels that this generation was trained on (logits - log p(y) are
                     the logit-adjusted logits), generation, versions, and the run's config.
  model.jax          The model as a serialised JAX function that includes its weights, for CPU, GPU
                     and TPU. It needs the packages jax and flatbuffers:
                         from jax import export
                         model = export.deserialize(pathlib.Path("model.jax").read_bytes())
                         logits = model.call(images)
                     Images are uint8 of shape [batch, height, width, channels], for any batch;
                     logits are float32 of shape [batch, classes]. JAX promises that versions newer
                     than the one that wrote the file can read it for six months.
  checkpoint/        The weights again, as {"params", "batch_stats"}, in the format of Orbax's
                     StandardCheckpointer.
"""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from etils.epath import Path
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from crest_jax import backend, command, environment, evaluate, files, trained, workdir
from crest_jax.config import to_plain
from crest_jax.data.views import CENTRAL_PART
from crest_jax.errors import WorkdirError
from crest_jax.models.structure import structure
from crest_jax.trained import Trained

DESCRIPTION = "model.json"  # written last
PLATFORMS = ("cpu", "cuda", "tpu")


def serialise(model: Trained) -> bytes:
    """Return the model, serialised as a function of a batch of any size for all platforms."""

    def logits(
        images: UInt8[Array, "batch height width channels"],
    ) -> Float[Array, "batch classes"]:
        return evaluate.logits(model.model, model.params, model.batch_stats, images)

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), "uint8")
    return bytes(jax_export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())


def named_weights(model: Trained) -> dict[str, Float[np.ndarray, "..."]]:
    """Return a model's weights in float32, by paths such as `params/Dense_0/kernel`."""
    flat = flatten_dict(jax.device_get(model.variables), sep="/")
    return {name: np.asarray(value, np.float32, order="C") for name, value in flat.items()}


def describe(model: Trained, config: ConfigDict) -> dict[str, Any]:
    """Return the content of model.json as JSON values.

    Args:
      model: the exported model.
      config: the config of its run.
    """
    return {
        "architecture": {"name": config.model.name, **structure(model.model)},
        "dtype": config.dtype,
        "precision": config.precision,
        "input": {
            "view": {**model.view._asdict(), "central_part": CENTRAL_PART},
            "scale": 2 / 255,  # as in `augment.rescale`
            "offset": -1.0,
        },
        "image_shape": list(model.image_shape),
        "class_names": list(model.class_names),
        # p(y) of the labels that this generation was trained on, for logit adjustment.
        "class_distribution": model.class_distribution.tolist(),
        "generation": model.generation,
        "environment": environment.current(),
        "config": to_plain(config),
    }


def export(run: Path, output: Path, *, generation: int | None = None) -> Trained:
    """Write a run's model to a new folder, and return the model; an error removes the folder again.

    Args:
      run: the run's folder.
      output: the folder to make; it must not exist yet.
      generation: number of the generation, from 1; by default, the last finished one.

    Raises:
      WorkdirError: `output` exists or cannot be made; or as for `trained.load`.
      ConfigError, DataError, UnavailableError: As for `trained.load`.
    """
    if output.exists():
        advice = "choose another folder"
        if not (output / DESCRIPTION).exists():
            advice += f"; it has no {DESCRIPTION}, and may be what a killed export has left"
        raise WorkdirError(f"--output={output} exists already: {advice}")
    files.check_writable(output)
    with files.plainly_named(output) as plainly_named:
        model = trained.load(run, generation=generation)
        content = serialise(model)
        try:
            output.mkdir()
        except files.failures() as error:
            reason = files.reason(error)
            raise WorkdirError(f"--output={output} cannot be made ({reason})") from error
        try:
            files.write_bytes(output / "model.jax", content)
            files.write_bytes(
                output / "model.safetensors", safetensors.numpy.save(named_weights(model))
            )
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(plainly_named / "checkpoint", model.variables)
            files.write_json(output / DESCRIPTION, describe(model, workdir.read_config(run)))
        except BaseException:
            output.rmtree(missing_ok=True)
            raise
    return model


@command.entry
def main() -> None:
    """Export the model of the run that the command line names."""
    parser = command.parser(__doc__)
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
