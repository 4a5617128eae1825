"""Every algorithm and every rebalancing method, end to end on digits with a tiny model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from crest_jax import adjust, files, job
from crest_jax.algorithms import ALGORITHMS, Algorithm, Field, Loss
from crest_jax.data import manifest
from crest_jax.errors import ConfigError, WorkdirError
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy
from crest_jax.validation import validate

CHANCE = 10.0
MARGIN = 40.0
# Long enough to learn something from 40 % of a mild long tail.
LEARNING = {
    "generations": 1,
    "steps": 120,
    "eval_every": 20,
    "checkpoint_every": 120,
    "batch_size": 16,
    "optimizer.learning_rate": 0.05,
    "optimizer.cosine_level": 7,
}
SELF_TRAINING = {**LEARNING, "generations": 2, "steps": 80}
# So few steps are too few for the weight of 75 that MixMatch gives to its unlabeled images.
MIXMATCH = {"unlabeled_weight": 5.0}


@pytest.fixture(scope="module")
def run(tiny_config, make_folder):
    """Runs an experiment's arguments, and gives its folder and results.json."""

    def run(arguments, **changes):
        settings = dict(SELF_TRAINING if "crest" in arguments else LEARNING)
        if "supervised" in arguments:
            settings["unlabeled_ratio"] = 0
        if "mixmatch" in arguments:
            settings |= MIXMATCH
        config = tiny_config(f"beta=0.4,gamma=4,{arguments}", **{**settings, **changes})
        workdir = make_folder("methods") / "run"
        job.run(config, workdir)
        return workdir, json.loads((workdir / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def crest_plus(run):
    return run("rebalance=crest_plus+rs")


@pytest.mark.parametrize("method", ALGORITHMS)
def test_every_algorithm_learns(run, method):
    _, results = run(f"method={method},rebalance=none")
    assert results["accuracy"] > CHANCE + MARGIN
    assert (results["method"], results["rebalance"]) == (method, "none")


@pytest.mark.parametrize("rebalance", ["cb", "rs", "da", "darp"])
def test_every_rebalancing_learns_and_is_at_work(run, rebalance):
    _, results = run(f"rebalance={rebalance}")
    assert results["accuracy"] > CHANCE + MARGIN


def test_self_training_learns(crest_plus):
    _, results = crest_plus
    assert all(result["accuracy"] > CHANCE + MARGIN for result in results["generations"])
    assert [result["temperature"] for result in results["generations"]] == [1.0, 0.5]


def test_crest_and_darp_with_mixmatch(run):
    _, results = run("method=mixmatch,rebalance=darp+crest")
    assert all(result["accuracy"] > CHANCE + MARGIN for result in results["generations"])


def test_all_labels_can_be_used(run):
    """This is the fully supervised bound: nothing is unlabeled."""
    _, results = run("method=supervised,rebalance=none,beta=1.0", steps=40)
    assert results["accuracy"] > CHANCE + MARGIN
    assert sum(results["pseudo_labels"]["predicted"]) == 0
    assert results["unlabeled_distribution"] == {"source": "labeled", "given": []}


def test_an_unlabeled_set_in_reversed_order_is_estimated_at_every_evaluation(run):
    """Where the labeled set's class distribution is the wrong target, the model's is nearer."""
    long_tail = {
        "n_max": 40,
        "gamma": 4.0,
        "unlabeled_n_max": 80,
        "unlabeled_gamma": 8.0,
        "unlabeled_order": "reversed",
        "split": "random",
    }
    workdir, results = run(
        "rebalance=da,t=1.0",
        long_tail=ConfigDict(long_tail),
        **{"unlabeled_distribution.source": "predicted", "data.validation_fraction": 0.25},
    )
    assert results["long_tail"] == long_tail
    assert results["accuracy"] > CHANCE + MARGIN
    lines = (workdir / "generation_00" / "metrics.jsonl").read_text().splitlines()
    estimates = np.array([json.loads(line)["unlabeled_distribution"] for line in lines])
    np.testing.assert_allclose(estimates.sum(axis=1), 1)
    splits = workdir / "splits"
    truth, labeled = (
        np.array(manifest.read(splits / name)["examples_per_class"])
        for name in ("unlabeled", "labeled")
    )
    errors = [
        np.abs(shares - truth / truth.sum()).sum()
        for shares in (estimates[-1], labeled / labeled.sum())
    ]
    assert errors[0] < 0.75 * errors[1]
    # The last evaluation and the end of the generation are of one model.
    found = results["generations"][0]["unlabeled_distribution"]
    np.testing.assert_allclose(found["estimate"], estimates[-1])
    assert found["known_from"] == "validation"
    np.testing.assert_allclose(found["labeled"], labeled / labeled.sum())
    assert (np.array(found["low"]) <= truth / truth.sum()).mean() >= 0.8
    assert (truth / truth.sum() <= np.array(found["high"])).mean() >= 0.8
    assert found["p_value"] < 0.01
    assert {0, 9} & set(found["differs"])
    assert results["unlabeled_distribution"] == {"source": "predicted", "given": [], **found}


def test_a_distribution_of_other_classes_is_refused_before_training(run):
    with pytest.raises(ConfigError, match=r"unlabeled_distribution.given has 3 entries for 10"):
        run(
            "rebalance=darp",
            unlabeled_distribution={"source": "given", "given": (1.0, 1.0, 1.0)},
        )


def test_another_algorithm_is_one_function_and_one_registry_line(run, tiny_config, monkeypatch):
    """Everything else follows from these two, as docs/architecture.md says."""

    def pi_model(inputs, *, consistency):
        keys = jnp.moveaxis(jax.vmap(jax.random.split)(inputs.unlabeled_keys), 1, 0)
        labeled_logits, batch_stats = inputs.forward(
            inputs.weak(inputs.labeled, inputs.labeled_keys)
        )
        first, second = (
            jax.nn.softmax(inputs.forward(inputs.weak(inputs.unlabeled, key))[0]) for key in keys
        )
        guesses = inputs.align(jax.lax.stop_gradient(second))
        error = ((first - inputs.refine(guesses)) ** 2).mean()
        labels = jax.nn.one_hot(inputs.labels, first.shape[-1])
        labeled_loss = weighted_cross_entropy(labeled_logits, labels, inputs.class_weights).mean()
        total = labeled_loss + consistency * error
        return Loss(total, batch_stats, {"loss": total}, second.mean(axis=0), guesses)

    consistency = {"consistency": Field(10.0, within="[0, inf)")}
    monkeypatch.setitem(ALGORITHMS, "pi_model", Algorithm(pi_model, consistency))
    _, results = run("method=pi_model,rebalance=darp+crest+cb")
    assert results["method"] == "pi_model"
    assert all(result["accuracy"] > CHANCE + MARGIN for result in results["generations"])
    with pytest.raises(ConfigError, match=r"consistency=-1.0 must be at least 0"):
        validate(tiny_config("method=pi_model", consistency=-1.0))


# Logit adjustment of a finished run


def test_adjusting_with_the_runs_own_tau_gives_the_reported_figures(crest_plus):
    workdir, results = crest_plus
    adjusted = adjust.adjust(workdir, [0.0, 1.0, 2.0])
    assert adjusted["class_names"] == results["class_names"]
    assert len(adjusted["generations"]) == 2
    for entry, result in zip(adjusted["generations"], results["generations"], strict=True):
        plain, own, other = entry["adjusted"]
        assert plain["accuracy"] == pytest.approx(result["accuracy"], abs=1e-9)
        assert own["accuracy"] == pytest.approx(result["accuracy_logit_adjusted"], abs=1e-9)
        np.testing.assert_allclose(plain["per_class_recall"], result["per_class_recall"])
        np.testing.assert_allclose(
            own["per_class_precision"], result["per_class_precision_logit_adjusted"]
        )
        # The smallest class can only gain from more adjustment.
        recalls = [found["per_class_recall"][9] for found in (plain, own, other)]
        assert recalls == sorted(recalls)


def test_the_command_prints_a_column_per_tau_and_writes_them(
    crest_plus, monkeypatch, capsys, tmp_path
):
    workdir, results = crest_plus
    output = tmp_path / "adjusted.json"
    arguments = ["--workdir", str(workdir), "--tau", "0", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["adjust", *arguments])
    adjust.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["generation", "1", "tau", "0", "tau", "1"]
    first = results["generations"][0]
    assert lines[1].split() == [
        "accuracy", f"{first['accuracy']:.1f}", f"{first['accuracy_logit_adjusted']:.1f}"
    ]  # fmt: skip
    assert [entry["generation"] for entry in json.loads(output.read_text())["generations"]] == [
        0,
        1,
    ]


def test_what_cannot_be_adjusted_is_named(crest_plus, tmp_path):
    workdir, _ = crest_plus
    with pytest.raises(ConfigError, match=r"tau=-1\.0 must be a number of at least 0"):
        adjust.adjust(workdir, [-1.0])
    with pytest.raises(WorkdirError, match=r"is not a run: it has no config\.json"):
        adjust.adjust(tmp_path, [1.0])
    old = tmp_path / "old"
    old.mkdir()
    stored = files.read_json(workdir / "config.json")
    del stored["config"]["method"]
    files.write_json(old / "config.json", stored)
    with pytest.raises(WorkdirError, match=r"not written by this program .method is missing"):
        adjust.adjust(old, [1.0])
    checkpoint = workdir / "generation_00" / "checkpoints" / "40"
    moved = checkpoint.rename(tmp_path / "40")
    try:
        with pytest.raises(WorkdirError, match="lacks the checkpoint of step 40"):
            adjust.adjust(workdir, [1.0])
    finally:
        moved.rename(checkpoint)
