from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import entr, kl_div, logsumexp

from crest_jax.rebalancing import darp

refine = jax.jit(darp.refine)
remove_noise = jax.jit(darp.remove_noise, static_argnums=2)


def pseudo_labels(seed, examples, classes, *, sharpness=1.0, floor=1e-4):
    """Random rows on the simplex, bounded away from its edges."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(examples, classes))
    probs = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    return ((probs + floor) / (1 + classes * floor)).astype(np.float32)


def long_tail(examples, classes, gamma=20.0):
    sizes = gamma ** -np.linspace(0, 1, classes)
    return (examples * sizes / sizes.sum()).astype(np.float32)


def objective(refined, probs):
    """Return sum_m KL(M_m || q_m) / H(q_m), with SciPy's terms."""
    return (kl_div(refined, probs).sum(axis=1) / entr(probs).sum(axis=1)).sum()


def assert_feasible(refined, counts):
    assert (refined >= 0).all()
    np.testing.assert_allclose(refined.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(refined.sum(axis=0), counts, rtol=1e-3, atol=1e-3)


def solved_by_scipy(probs, counts):
    """The problem as it is written, for a solver that knows nothing of its dual."""
    examples, classes = probs.shape
    weights = 1 / entr(probs).sum(axis=1)

    def value(flat):
        refined = flat.reshape(probs.shape)
        return (weights * kl_div(refined, probs).sum(axis=1)).sum()

    def gradient(flat):
        return (weights[:, None] * np.log(flat.reshape(probs.shape) / probs)).ravel()

    rows = np.kron(np.eye(examples), np.ones(classes))
    columns = np.tile(np.eye(classes), examples)[:-1]  # the last follows from the others
    found = scipy.optimize.minimize(
        value,
        np.tile(counts / counts.sum(), examples),
        jac=gradient,
        bounds=[(1e-9, 1)] * probs.size,
        constraints=scipy.optimize.LinearConstraint(
            np.vstack([rows, columns]), *[np.concatenate([np.ones(examples), counts[:-1]])] * 2
        ),
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    assert found.success
    return found.x.reshape(probs.shape)


def solved_by_coordinate_ascent(probs, counts, rounds):
    """The published way, in float64: one dual variable after the other, each to its optimum."""
    slack = np.maximum(entr(probs).sum(axis=1), 0.01)  # as ours
    nu = np.zeros(len(counts))

    def refined():
        scores = np.log(probs) + slack[:, None] * nu
        return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))

    for _ in range(rounds):
        for label in range(len(counts)):

            def excess(value, label=label):
                nu[label] = value
                return refined()[:, label].sum() - counts[label]

            nu[label] = scipy.optimize.brentq(excess, -2000, 2000)
    return refined()


@pytest.mark.parametrize("seed", range(4))
def test_refining_solves_the_papers_problem(seed):
    """The results are those of a general convex solver."""
    probs = pseudo_labels(seed, 8, 4, sharpness=1.5).astype(np.float64)
    probs /= probs.sum(axis=1, keepdims=True)
    counts = 8 * np.random.default_rng(seed).dirichlet(np.full(4, 3.0))
    expected = solved_by_scipy(probs, counts)
    ours = refine(jnp.float32(probs), jnp.float32(counts))
    np.testing.assert_allclose(ours, expected, atol=3e-3)
    assert objective(np.asarray(ours), probs) == pytest.approx(objective(expected, probs), rel=1e-3)


@pytest.mark.parametrize(("sharpness", "floor"), [(2.0, 1e-4), (30.0, 1e-5)])
def test_the_published_iteration_comes_to_the_same(sharpness, floor):
    """This holds even if most rows are surer than those that are told apart."""
    examples, classes = 200, 5
    probs = pseudo_labels(7, examples, classes, sharpness=sharpness, floor=floor)
    surer = (entr(probs).sum(axis=1) < 0.01).mean()
    assert surer > 0.5 if sharpness == 30.0 else surer == 0
    counts = long_tail(examples, classes)
    expected = solved_by_coordinate_ascent(probs.astype(np.float64), counts, rounds=60)
    assert_feasible(expected, counts)
    ours = np.asarray(refine(probs, counts))
    np.testing.assert_allclose(ours, expected, atol=5e-3)


@pytest.mark.parametrize(
    ("examples", "classes", "sharpness", "gamma"),
    [(30, 2, 1.0, 3.0), (1000, 10, 0.1, 100.0), (1000, 10, 3.0, 150.0), (1000, 10, 30.0, 150.0),
     (2000, 100, 4.0, 50.0)],
)  # fmt: skip
def test_rows_sum_to_one_and_columns_to_their_targets(examples, classes, sharpness, gamma):
    """Rows range from nearly uniform to nearly one-hot, and targets are long tails."""
    probs = pseudo_labels(3, examples, classes, sharpness=sharpness)
    counts = long_tail(examples, classes, gamma)
    given = np.abs(probs.sum(axis=0) / counts - 1).max()
    assert given > 0.05  # there is something to do
    assert_feasible(np.asarray(refine(probs, counts)), counts)


def test_what_noise_removal_leaves_can_be_refined():
    probs = pseudo_labels(4, 1000, 10, sharpness=6.0)
    counts = long_tail(1000, 10, 100.0)
    left = remove_noise(probs, counts, 2.0)
    assert_feasible(np.asarray(refine(left, counts)), counts)


def test_pseudo_labels_that_are_right_stay():
    probs = pseudo_labels(5, 60, 4)
    refined = refine(probs, probs.sum(axis=0))
    np.testing.assert_allclose(refined, probs, atol=1e-4)


def test_uncertain_examples_give_way_before_certain_ones():
    """Both are for class 0, of which there is to be one: the surer one keeps it."""
    probs = np.array([[0.97, 0.03], [0.6, 0.4]], np.float32)
    refined = np.asarray(refine(probs, np.array([1.0, 1.0], np.float32)))
    assert refined[0, 0] > 0.85
    assert refined[1, 0] < 0.15


def test_uniform_rows_become_the_target():
    counts = long_tail(50, 4)
    refined = refine(np.full((50, 4), 0.25, np.float32), counts)
    np.testing.assert_allclose(refined, np.tile(counts / 50, (50, 1)), rtol=1e-3)


def test_a_class_without_examples_gets_nothing():
    probs = pseudo_labels(6, 100, 4)
    counts = np.array([50, 30, 0, 20], np.float32)
    refined = np.asarray(refine(probs, counts))
    assert not refined[:, 2].any()
    assert_feasible(refined, counts)


def test_counts_are_scaled_to_the_examples():
    probs = pseudo_labels(8, 90, 3)
    shares = np.array([0.6, 0.3, 0.1], np.float32)
    np.testing.assert_allclose(refine(probs, shares), refine(probs, 90 * shares), atol=1e-5)


def test_noise_removal_keeps_the_highest_of_each_class():
    rng = np.random.default_rng(9)
    probs = rng.integers(1, 6, size=(12, 3)).astype(np.float32)  # many of them equal
    probs /= probs.sum(axis=1, keepdims=True)
    counts = np.array([4.2, 1.7, 0.3], np.float32)
    left = np.asarray(remove_noise(probs, counts, 2.0))

    expected = np.zeros_like(probs)
    for label, kept in enumerate((8, 3, 0)):  # int(2 * count)
        ranked = sorted(range(12), key=lambda row: -probs[row, label])  # stable: earlier first
        expected[ranked[:kept], label] = probs[ranked[:kept], label]
    expected += 1e-6
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(left, expected, rtol=1e-5)


def test_an_example_that_no_class_keeps_becomes_uniform():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]], np.float32)
    left = remove_noise(probs, np.array([1.0, 1.0], np.float32), 1.0)
    np.testing.assert_allclose(left, [[1, 0], [0.5, 0.5], [0, 1]], atol=1e-5)


def test_of_an_example_seen_twice_the_last_guess_is_remembered():
    kept = jnp.zeros((4, 2))
    guesses = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    remembered = darp.remember(kept, jnp.array([2, 0, 2]), guesses)
    np.testing.assert_array_equal(remembered, [[0.5, 0.5], [0, 0], [0, 1], [0, 0]])


def test_pseudo_labels_are_renewed_on_schedule():
    """Ready for step 3, the first that uses them, and for every second one from there."""
    refinement = darp.Refinement(start=3, every=2, delta=2.0)
    update = jax.jit(partial(darp.update, refinement=refinement))
    state = darp.create(6, 4)
    target = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    assert [leaf.shape for leaf in state] == [(6, 4), (6, 4)]
    np.testing.assert_allclose(state.pseudo_labels, 0.25)
    renewed = []
    for step in range(8):
        guesses = pseudo_labels(step, 3, 4)
        rows = np.arange(3) + 3 * (step % 2)
        new = update(state, rows=rows, guesses=guesses, step=jnp.int32(step), target=target)
        np.testing.assert_array_equal(new.pseudo_labels[rows], guesses)
        if not np.array_equal(new.refined, state.refined):
            renewed.append(step + 1)
            counts = 6 * target
            expected = refine(remove_noise(new.pseudo_labels, counts, 2.0), counts)
            np.testing.assert_allclose(new.refined, expected, atol=1e-4)
        state = new
    assert renewed == [3, 5, 7]
