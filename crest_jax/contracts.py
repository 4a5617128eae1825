"""What training asks of plug-ins, checked on shapes alone, before any long work starts.

The number of classes and the size of the images are known only with the data. Until then, a model
and a loss are traced with invented ones. An error that a plug-in raises may come of these, so it is
left to the run's own shapes (`program.build`, and the first training step).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from crest_jax import models, plugins, program
from crest_jax.errors import PluginError
from crest_jax.mesh import data_mesh
from crest_jax.rebalancing import parts
from crest_jax.train_step import Constants, DeviceBatch

# Height, width and channels of images that are tried, until a model takes one.
_SHAPES = tuple((side, side, channels) for side in (32, 224, 28, 8) for channels in (3, 1))
_CLASSES = 10
_EXAMPLES = 100  # in the unlabeled stream


def check(config: ConfigDict) -> None:
    """Check the model, the loss and the traced hooks of a config, if any of them is a plug-in.

    JAX's devices must have been started.

    Args:
      config: validated.

    Raises:
      PluginError: One of them does not do what training asks of it.
    """
    own_model = plugins.is_plugin(config.model.name)
    own_step = any(map(plugins.is_plugin, [config.method, *parts(config.rebalance)]))
    found = _traced_model(config) if own_model or own_step else None
    if own_step and found is not None:
        _trace_step(config, *found)


def _traced_model(config: ConfigDict) -> tuple[tuple[int, int, int], int] | None:
    """Return the shape of images that the model takes, and its number of classes.

    It is None if the model takes none of those tried.
    """
    name, side = config.model.name, config.data.image_size
    shapes = ((side, side, 3), (side, side, 1)) if side else _SHAPES
    # A model that is not told the number of classes may have a head for those of its data.
    classes = _CLASSES if models.takes_classes(name) else None
    model = program.model_of(config, _CLASSES, axis_name=None)
    for shape in shapes:
        try:
            logits = models.logits_of(name, model, shape, classes=classes)
        except PluginError:
            raise
        except Exception:  # it may be one of this shape
            continue
        return shape, logits.shape[1]
    return None


def _trace_step(config: ConfigDict, image_shape: tuple[int, int, int], classes: int) -> None:
    """Trace a training step on images of a shape."""
    model = program.model_of(config, classes, axis_name=program.batch_norm_axis(config))
    create = program.creator(config, model, image_shape, classes, _EXAMPLES)
    step = program.train_step_of(config, model, data_mesh(group=config.sync_batch_norm_group))
    labeled, unlabeled = config.batch_size, config.batch_size * config.unlabeled_ratio

    def train(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        state = create(key)
        batch = DeviceBatch(
            jnp.zeros((labeled, *image_shape), jnp.uint8),
            jnp.zeros(labeled, jnp.int32),
            jnp.zeros((unlabeled, *image_shape), jnp.uint8),
            jnp.zeros(unlabeled, jnp.int32),
        )
        ones = jnp.ones(classes)
        trained, _ = step(state, batch, Constants(key, jnp.ones(()), ones / classes, ones))
        return state.batch_stats, trained.batch_stats

    try:
        before, after = jax.eval_shape(train, jax.random.key(0))
    except PluginError as error:
        if error.__cause__ is None:  # what a plug-in raised may come of these shapes
            raise
        return
    except Exception:  # likewise
        return
    wrongs = [*_differences(_leaves(before), _leaves(after))]
    if not wrongs and str(jax.tree.structure(before)) != str(jax.tree.structure(after)):
        wrongs = ["in other containers"]
    for wrong in wrongs:
        raise PluginError(
            f"method={config.method} returns a Loss with other batch_stats than the model has, "
            f"{wrong}: they must be those that inputs.forward returns, or of the same shapes"
        )


def _leaves(tree: PyTree) -> dict[str, str]:
    """Return the dtype and shape of each leaf, which may be weakly typed, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _differences(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    for path in sorted(before.keys() - after.keys()):
        yield f"without {path}"
    for path, found in after.items():
        if path not in before:
            yield f"with {path}, which it lacks"
        elif found != before[path]:
            yield f"with {path} of {found} instead of {before[path]}"
