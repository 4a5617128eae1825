from functools import partial

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_net import TinyNet

from crest_jax import optimizers, train_state
from crest_jax.algorithms import ALGORITHMS, Loss
from crest_jax.augment import Augmentation
from crest_jax.mesh import AXES, SPLIT, WITHIN_GROUP, mesh_of, over_devices, replicate, split
from crest_jax.rebalancing import crest, darp, distribution_alignment
from crest_jax.train_step import (
    Constants,
    DeviceBatch,
    in_a_row,
    make_train_step,
    shuffle,
)

CLASSES = 4
EXAMPLES = 40
AUGMENTATION = Augmentation(flip=False, shift=True, operations=(), cutout=0.5, from_weak_view=False)
SCHEDULE = optimizers.learning_rate_schedule(0.03, steps=10, level=1)
OPTIMIZER = optimizers.sgd(SCHEDULE, weight_decay=5e-4, momentum=0.9, nesterov=True)
TARGET = np.array([0.6, 0.2, 0.15, 0.05], np.float32)
WEIGHTS = np.array([0.5, 1.0, 1.0, 1.5], np.float32)
UNIFORM = np.full((24, CLASSES), 1 / CLASSES, np.float32)


def loss_of(method, **changes):
    algorithm = ALGORITHMS[method]
    defaults = {name: each.default for name, each in algorithm.hyper_parameters.items()}
    return partial(algorithm.loss, **{**defaults, **changes})


FIXMATCH = loss_of("fixmatch", threshold=0.5)


def build(
    devices,
    *,
    sync=True,
    group=0,
    alignment_target="progressive",
    loss=FIXMATCH,
    refinement=None,
    accumulation=1,
    ema_batch_norm=False,
    net=TinyNet,
    dtype=jnp.float32,
    operations=("Rotate", "Brightness", "Sharpness"),
    **augmentation,
):
    axis_name = (WITHIN_GROUP if group else AXES) if sync else None
    model = net(CLASSES, axis_name=axis_name, dtype=dtype)
    mesh = mesh_of(jax.devices()[:devices], group=group)
    step = make_train_step(
        loss,
        model,
        OPTIMIZER,
        mesh,
        steps=10,
        alignment_target=alignment_target,
        align=distribution_alignment.align,
        refinement=refinement,
        ema_decay=0.9,
        ema_batch_norm=ema_batch_norm,
        augmentation=AUGMENTATION._replace(operations=operations, **augmentation),
        accumulation=accumulation,
    )
    return mesh, model, step


def fresh_state(refined_examples=0):
    create = partial(
        train_state.create,
        model=TinyNet(CLASSES),
        optimizer=OPTIMIZER,
        image_shape=(8, 8, 1),
        classes=CLASSES,
        refined_examples=refined_examples,
    )
    return jax.device_get(jax.jit(create)(jax.random.key(0)))


@pytest.fixture(scope="module")
def fresh():
    return fresh_state()


def batch_at(step):
    rng = np.random.default_rng(step)
    return DeviceBatch(
        rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8),
        rng.integers(0, CLASSES, 8).astype(np.int32),
        rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8),
        rng.permutation(EXAMPLES)[:24].astype(np.int32),
    )


def generation(temperature=0.5):
    return Constants(
        jax.random.key(1), jnp.float32(temperature), jnp.asarray(TARGET), jnp.asarray(WEIGHTS)
    )


def run(built, state, steps=3, temperature=0.5):
    mesh, _, step = built
    state = replicate(state, mesh)
    constants = replicate(generation(temperature), mesh)
    history = []
    for number in range(steps):
        state, metrics = step(state, split(batch_at(number), mesh), constants)
        history.append(jax.device_get((state, metrics)))
    return history


@pytest.fixture(scope="module")
def one_device(fresh):
    built = build(1)
    return built, run(built, fresh)


def assert_same_history(ours, theirs):
    for (state, metrics), (state_1, metrics_1) in zip(ours, theirs, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), metrics, metrics_1)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state, state_1)


@pytest.mark.parametrize("devices", [1, 8])
def test_steps_sent_together_are_those_sent_one_by_one(one_device, fresh, devices):
    _, expected = one_device
    mesh, _, step = build(devices)
    batches = DeviceBatch(*map(np.stack, zip(*map(batch_at, range(3)), strict=True)))
    state, metrics = in_a_row(step)(
        replicate(fresh, mesh),
        split(batches, mesh, axis=1),
        replicate(generation(), mesh),
    )
    in_turn = jax.tree.map(lambda *each: np.stack(each), *(metrics for _, metrics in expected))
    assert_same_history([(state, metrics)], [(expected[-1][0], in_turn)])


def test_a_single_step_is_not_looped_over(one_device, fresh):
    (mesh, _, step), expected = one_device
    batches = DeviceBatch(*(leaf[None] for leaf in batch_at(0)))
    inputs = (
        replicate(fresh, mesh),
        split(batches, mesh, axis=1),
        replicate(generation(), mesh),
    )
    steps = in_a_row(step)
    state, metrics = steps(*inputs)
    metrics = jax.tree.map(lambda leaf: leaf[0], metrics)
    assert_same_history([(state, metrics)], expected[:1])


def sums_over_devices(jaxpr):
    """Arrays that are summed over the devices, in all of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum"):
            yield from (variable.aval for variable in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sums_over_devices(inner)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_gradients_are_summed_over_devices_once_and_in_float32(fresh, accumulation):
    """Also those of a model that computes in bfloat16."""
    mesh, _, step = build(2, dtype=jnp.bfloat16, accumulation=accumulation)
    batch, constants = split(batch_at(0), mesh), replicate(generation(), mesh)
    program = jax.make_jaxpr(step)(replicate(fresh, mesh), batch, constants)
    sums = list(sums_over_devices(program.jaxpr))
    assert {each.dtype for each in sums} == {jnp.dtype("float32")}
    for kernel in jax.tree.leaves(fresh.params):
        if kernel.ndim > 1:
            assert [each.shape for each in sums].count(kernel.shape) == 1


def test_devices_share_a_batch_and_change_nothing(one_device, fresh):
    _, expected = one_device
    assert_same_history(run(build(8), fresh), expected)


def test_a_group_of_devices_is_as_one_without_synchronised_batch_norm(one_device, fresh):
    groups_of_two = run(build(8, group=2), fresh)
    assert_same_history(groups_of_two, run(build(4, sync=False), fresh))
    assert_same_history(run(build(8, group=8), fresh), one_device[1])
    with pytest.raises(AssertionError):
        assert_same_history(groups_of_two, one_device[1])


@pytest.mark.parametrize("method", ["supervised", "pseudo_label", "mean_teacher", "mixmatch"])
def test_devices_change_nothing_whatever_the_algorithm(fresh, method):
    """MixMatch mixes images of one device with those of another."""
    changes = {"threshold": 0.5} if method == "pseudo_label" else {}
    histories = [run(build(devices, loss=loss_of(method, **changes)), fresh) for devices in (1, 4)]
    assert_same_history(*histories)
    _, metrics = histories[0][-1]
    assert np.isfinite(metrics["loss"])
    assert ("unlabeled_loss" in metrics) == (method != "supervised")
    if method != "supervised":
        assert metrics["unlabeled_loss"] > 0


@pytest.mark.parametrize("method", ["fixmatch", "supervised"])
def test_a_batch_in_two_parts_is_one_on_two_devices(fresh, method):
    """Each part has its own batch norm, like two devices that do not synchronise."""
    loss = FIXMATCH if method == "fixmatch" else loss_of(method)
    parts = run(build(1, loss=loss, accumulation=2), fresh)
    assert_same_history(parts, run(build(2, loss=loss, sync=False), fresh))
    kernels = [history[0][0].params["Conv_0"]["kernel"] for history in
               (parts, run(build(1, loss=loss), fresh))]  # fmt: skip
    assert not np.allclose(*kernels, rtol=1e-4), "which is not what the whole batch gives"


def test_parts_of_a_batch_are_refined_like_the_whole():
    """DARP keeps the guesses of every example, whichever part it was in."""
    state = fresh_state(EXAMPLES)
    refinement = darp.Refinement(start=1, every=1, delta=2.0)
    parts = run(build(1, refinement=refinement, accumulation=4), state)
    whole = run(build(4, sync=False, refinement=refinement), state)
    assert_same_history(parts, whole)


def test_shuffling_permutes_all_parts_of_all_devices_together():
    """Every example of every part comes back once, in a tree with what belongs to it."""
    parts = [np.arange(8), 100 + np.arange(16), 200 + np.arange(16)]
    drawn = []
    for devices in (1, 2, 8):
        mapped = over_devices(
            lambda *rows: [
                jnp.stack([part["image"], part["label"]], axis=1)
                for part in shuffle(
                    jax.random.key(3), [{"image": row, "label": -row} for row in rows]
                )
            ],
            mesh_of(jax.devices()[:devices]),
            in_specs=SPLIT,
            out_specs=SPLIT,
        )
        shuffled = jax.device_get(mapped(*split(parts, mesh_of(jax.devices()[:devices]))))
        assert [len(part) for part in shuffled] == [8, 16, 16]
        images, labels = np.concatenate(shuffled).T
        np.testing.assert_array_equal(labels, -images)
        assert sorted(images) == sorted(np.concatenate(parts))
        assert not np.array_equal(images, np.concatenate(parts))
        drawn.append(images)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


def test_the_pseudo_labels_count(one_device):
    _, history = one_device
    assert all(0 < metrics["above_threshold"] < 1 for _, metrics in history)
    assert all(metrics["unlabeled_loss"] > 0 for _, metrics in history)


def test_labels_only_leave_the_estimate_of_the_model_alone(fresh):
    ((state, _),) = run(build(1, loss=loss_of("supervised")), fresh, steps=1)
    np.testing.assert_array_equal(state.predictions, fresh.predictions)


def test_darp_replaces_the_pseudo_targets_from_its_first_step_on(fresh):
    """Three steps at least before the refined labels are used, and renewed every second one."""
    refinement = darp.Refinement(start=3, every=2, delta=2.0)
    seen = []

    def spying(inputs):
        refined = inputs.refine(jnp.asarray(UNIFORM))
        result = FIXMATCH(inputs._replace(refine=lambda guesses: refined))
        metrics = {f"{row}{label}": refined[row, label] for row in (0, 1) for label in range(4)}
        return result._replace(metrics=result.metrics | metrics)

    built = build(1, alignment_target="none", loss=spying, refinement=refinement)
    start = fresh_state(EXAMPLES)
    history = run(built, start, steps=6)
    expected = start.darp
    for number, (state, metrics) in enumerate(history):
        rows = batch_at(number).unlabeled_rows
        reported = [[metrics[f"{row}{label}"] for label in range(4)] for row in (0, 1)]
        seen.append(reported)
        used = expected.refined[rows[:2]] if number >= 3 else np.full((2, 4), 0.25)
        np.testing.assert_allclose(reported, used, rtol=1e-5)
        # What this step guessed is remembered, in the rows of its examples alone.
        others = np.setdiff1d(np.arange(EXAMPLES), rows)
        np.testing.assert_array_equal(
            state.darp.pseudo_labels[others], expected.pseudo_labels[others]
        )
        assert (state.darp.pseudo_labels[rows] != expected.pseudo_labels[rows]).any(axis=1).all()
        renewed = not np.array_equal(state.darp.refined, expected.refined)
        assert renewed == (number in (2, 4))
        if renewed:
            columns = state.darp.refined.sum(axis=0)
            np.testing.assert_allclose(columns, TARGET * EXAMPLES, rtol=1e-3)
        expected = state.darp


def test_devices_change_nothing_in_darp():
    def loss(inputs):
        """A minimal loss with a pseudo-target, which compiles in a moment."""
        logits, batch_stats = inputs.forward(inputs.weak(inputs.unlabeled, inputs.unlabeled_keys))
        guesses = inputs.align(jax.lax.stop_gradient(jax.nn.softmax(logits)))
        error = optax.softmax_cross_entropy(logits, inputs.refine(guesses)).mean()
        return Loss(error, batch_stats, {"loss": error}, guesses.mean(axis=0), guesses)

    refinement = darp.Refinement(start=2, every=1, delta=2.0)
    histories = [
        run(
            build(devices, alignment_target="none", loss=loss, refinement=refinement),
            fresh_state(EXAMPLES),
            steps=4,
        )
        for devices in (1, 8)
    ]
    assert_same_history(*histories)
    unrefined = run(build(1, alignment_target="none", loss=loss), fresh_state(), steps=4)
    ours, theirs = ([float(metrics["loss"]) for _, metrics in h] for h in (histories[0], unrefined))
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5)
    assert ours[2:] != pytest.approx(theirs[2:], rel=1e-3)


def test_class_weights_are_inputs_of_the_step(fresh):
    mesh, _, step = build(1, loss=loss_of("supervised"))
    batch = split(batch_at(0), mesh)
    losses = []
    for weights in (np.ones(CLASSES), np.array([4.0, 0.0, 0.0, 0.0]), np.array([0.0, 4, 0, 0])):
        inputs = generation()._replace(class_weights=jnp.asarray(weights, jnp.float32))
        _, metrics = step(replicate(fresh, mesh), batch, inputs)
        losses.append(float(metrics["labeled_loss"]))
    assert step._cache_size() == 1
    assert len(set(losses)) == 3


def test_unsynchronised_batch_norm_averages_what_the_devices_saw(one_device, fresh):
    _, expected = one_device
    (state, metrics), *_ = run(build(4, sync=False), fresh, steps=1)
    (state_1, metrics_1), *_ = expected
    # Means of the convolution's output do not depend on how the batch is split; variances within
    # a quarter of the batch do.
    ours, theirs = (s.batch_stats["BatchNorm_0"] for s in (state, state_1))
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-3, atol=1e-6)
    assert (ours["var"] <= theirs["var"] + 1e-6).all()
    assert not np.allclose(ours["var"], theirs["var"], rtol=1e-4)
    assert metrics["loss"] != pytest.approx(float(metrics_1["loss"]), rel=1e-5)


def test_running_estimates_by_hand(one_device, fresh):
    _, history = one_device
    labeled = np.full(CLASSES, 1 / CLASSES)
    for number, (state, _) in enumerate(history):
        frequencies = np.bincount(batch_at(number).labels, minlength=CLASSES) / 8
        labeled = 0.999 * labeled + 0.001 * frequencies
        np.testing.assert_allclose(state.labeled_distribution, labeled, rtol=1e-5)
        assert state.step == number + 1
    final = history[-1][0].predictions
    assert final.shape == (128, CLASSES)
    np.testing.assert_allclose(final.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(final[3:], 1 / CLASSES)  # still uniform
    assert all(not np.allclose(row, 1 / CLASSES, atol=1e-3) for row in final[:3])
    on_device = history[-1][0]._replace(predictions=jnp.asarray(final))
    np.testing.assert_allclose(
        on_device.model_distribution, final.astype(np.float64).mean(axis=0), rtol=1e-5
    )


def test_ema_by_hand(one_device, fresh):
    _, history = one_device
    expected = fresh.params
    for state, _ in history:
        expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, expected, state.params)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), state.ema_params, expected
        )


def test_batch_statistics_of_the_averaged_model_are_copied_or_averaged(one_device, fresh):
    _, history = one_device
    for state, _ in history:
        jax.tree.map(np.testing.assert_array_equal, state.ema_batch_stats, state.batch_stats)
    expected = fresh.batch_stats
    for state, _ in run(build(1, loss=loss_of("supervised"), ema_batch_norm=True), fresh):
        expected = jax.tree.map(lambda e, s: 0.9 * e + 0.1 * s, expected, state.batch_stats)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            state.ema_batch_stats,
            expected,
        )


@pytest.mark.parametrize("from_weak_view", [True, False])
def test_a_strong_view_begins_at_the_weak_one_of_its_image_or_at_another(fresh, from_weak_view):
    def loss(inputs):
        keys = jax.vmap(jax.random.split)(inputs.unlabeled_keys)
        weak = inputs.weak(inputs.unlabeled, keys[:, 0])
        strong = inputs.strong(inputs.unlabeled, keys[:, 1], keys[:, 0])
        logits, batch_stats = inputs.forward(weak)
        apart = (jnp.abs(weak - strong).max(axis=(1, 2, 3)) > 1e-6).mean()
        mean = jax.nn.softmax(logits).mean(axis=0)
        return Loss(logits.mean(), batch_stats, {"apart": apart}, mean)

    built = build(1, loss=loss, cutout=0.0, operations=("Identity",), from_weak_view=from_weak_view)
    (_, metrics), *_ = run(built, fresh, steps=1)
    # Two views of an 8 x 8 image have the same of 9 shifts by chance once in 9 times.
    assert (metrics["apart"] == 0) if from_weak_view else (metrics["apart"] > 0.5)


def test_the_teacher_is_the_average_of_the_weights(fresh):
    """Moving the average moves the teacher; moving the weights does not, nor has it a gradient."""

    def loss(inputs):
        views = inputs.weak(inputs.unlabeled, inputs.unlabeled_keys)
        taught = inputs.teacher(views)
        _, batch_stats = inputs.forward(views)
        metrics = {"teacher": jnp.abs(taught).mean(), "first": taught[0, 0]}
        return Loss(taught.mean(), batch_stats, metrics, jax.nn.softmax(taught).mean(axis=0))

    mesh, _, step = build(1, loss=loss)
    batch = split(batch_at(0), mesh)
    inputs = replicate(generation(), mesh)
    other = jax.tree.map(lambda leaf: 1.5 * leaf, fresh.params)
    seen = []
    for state in (fresh, fresh._replace(params=other), fresh._replace(ema_params=other)):
        new, metrics = step(replicate(state, mesh), batch, inputs)
        seen.append((float(metrics["teacher"]), float(metrics["first"])))
        # Without a gradient only weight decay moves the weights.
        kernel, before = new.params["Conv_0"]["kernel"], state.params["Conv_0"]["kernel"]
        np.testing.assert_allclose(kernel, before, rtol=1e-3)
    assert seen[0] == seen[1] != seen[2]


def test_one_compilation_serves_every_generation(one_device, fresh):
    built, history = one_device
    other = run(built, fresh, temperature=0.1)
    assert built[2]._cache_size() == 1
    # The temperature matters from the second step on: at first the model's distribution is
    # uniform, and the target decides.
    assert other[-1][1]["loss"] != pytest.approx(float(history[-1][1]["loss"]), rel=1e-6)


def test_scoring_selects_the_same_on_any_number_of_devices(one_device):
    from crest_jax import evaluate

    (_, model, _), history = one_device
    state, _ = history[-1]
    images = np.random.default_rng(9).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    rates = crest.sampling_rates(np.array([60, 20, 15, 5]), 1 / 3)
    selections = []
    for devices in (1, 4, 8):
        predict = evaluate.make_predict(model, mesh_of(jax.devices()[:devices]), batch_size=16)
        scored = predict(state.ema_params, state.batch_stats, images, np.log(TARGET))
        scores = crest.Scores(scored.labels, scored.confidence)
        selections += crest.select([scores], rates)
    assert 0 < selections[0].sum() < 50
    np.testing.assert_array_equal(selections[0], selections[1])
    np.testing.assert_array_equal(selections[0], selections[2])


@pytest.mark.parametrize("target", ["none", "labeled_average", "constant", "progressive"])
def test_guesses_are_aligned_with_the_target_of_the_config(fresh, target):
    """A loss that reports one aligned guess, in a state whose running estimates are not uniform."""
    probs = np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], np.float32)
    seen = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    labeled = np.array([0.1, 0.2, 0.3, 0.4], np.float32)

    def loss(inputs):
        logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
        aligned = inputs.align(jnp.asarray(probs))
        metrics = {f"{row}{label}": aligned[row, label] for row in (0, 1) for label in range(4)}
        return Loss(logits.mean(), batch_stats, metrics, aligned.mean(axis=0))

    mesh, _, step = build(1, loss=loss, alignment_target=target)
    state = fresh._replace(
        labeled_distribution=labeled, predictions=np.tile(seen, (128, 1)), step=np.int32(5)
    )
    new, metrics = step(
        replicate(state, mesh),
        split(batch_at(0), mesh),
        replicate(generation(0.5), mesh),
    )
    goal = {"none": seen, "labeled_average": labeled}.get(target, TARGET**0.5 / (TARGET**0.5).sum())
    expected = probs * (goal + 1e-6) / (seen + 1e-6)
    expected /= expected.sum(axis=1, keepdims=True)
    reported = [[float(metrics[f"{row}{label}"]) for label in range(4)] for row in (0, 1)]
    np.testing.assert_allclose(reported, expected, rtol=1e-5)
    # The estimates move after the loss: what this step predicted is at its place in the ring.
    np.testing.assert_allclose(new.predictions[5], expected.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new.predictions[6], seen)


# Dropout


class Dropping(TinyNet):
    """Drops half of the logits, and is otherwise the same."""

    @nn.compact
    def __call__(self, images, *, train):
        logits = TinyNet(self.classes, axis_name=self.axis_name, name="net")(images, train=train)
        return nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(logits)) * logits


def kept_of_two_passes(inputs):
    """Logs which logits are kept in two passes of the same images, and of the EMA model's."""
    images = jax.vmap(lambda image: image / 255.0)(inputs.labeled)
    (first, batch_stats), (second, _) = inputs.forward(images), inputs.forward(images)
    kept = [each != 0 for each in (first, second, inputs.teacher(images))]
    places = 2.0 ** jnp.arange(CLASSES)
    metrics = {str(n): (each * places).sum() for n, each in enumerate(kept)}
    metrics["different"] = (kept[0] != kept[1]).mean()
    return Loss(first.mean(), batch_stats, metrics)


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 1), (1, 2), (2, 1)])
def test_each_pass_step_and_part_drops_other_units_and_the_same_ones_again(devices, accumulation):
    built = build(devices, net=Dropping, loss=kept_of_two_passes, accumulation=accumulation)
    create = partial(
        train_state.create, model=Dropping(CLASSES), optimizer=OPTIMIZER,
        image_shape=(8, 8, 1), classes=CLASSES,
    )  # fmt: skip
    state = jax.device_get(jax.jit(create)(jax.random.key(0)))
    history, again = ([metrics for _, metrics in run(built, state)] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, history, again)
    sums = [float(metrics[name]) for metrics in history for name in ("0", "1", "2")]
    assert len(set(sums)) > 6  # of 9, of which some are the same by chance
    for metrics in history:
        assert 0.2 < metrics["different"] < 0.8
