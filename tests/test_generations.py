import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import evaluate, files, generations, job, program, self_training
from crest_jax.data import loading, pipeline, preparation, pseudo_labels
from crest_jax.errors import ConfigError, DataError, NonFiniteError, WorkdirError
from crest_jax.layout import RunFolder
from crest_jax.train_state import TrainState

LEARNED_ARGUMENTS = "rebalance=da,beta=0.5,gamma=4"
LEARNED = {
    "generations": 1,
    "steps": 150,
    "eval_every": 25,
    "checkpoint_every": 75,
    "alignment.target": "labeled_average",
    "data.validation_fraction": 0.25,
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def learned(tiny_config, make_folder):
    """FixMatch with a validation split, long enough to learn, on all eight devices."""
    workdir = make_folder("learned") / "run"
    config = tiny_config(LEARNED_ARGUMENTS, **LEARNED)
    job.run(config, workdir)
    return workdir, json.loads((workdir / "results.json").read_text())


def test_the_second_generation_compiles_nothing(tiny_config, tmp_path, caplog, monkeypatch):
    """JAX logs what it compiles."""
    logged_before = []
    run_generation = generations.run_generation

    def noted(*arguments):
        logged_before.append(len(caplog.records))
        return run_generation(*arguments)

    monkeypatch.setattr(generations, "run_generation", noted)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        job.run(tiny_config(), tmp_path / "run")
    second = caplog.records[logged_before[1] :]
    compiled, again = (
        {words[1] for words in (record.getMessage().split() for record in records)
         if words[0] == "Compiling"}
        for records in (caplog.records, second)
    )  # fmt: skip
    assert {"jit(create)", "jit(steps)", "jit(on_device)"} <= compiled
    assert not again


def test_it_learns_well_above_chance(learned):
    _, results = learned
    assert results["accuracy"] > 40  # chance is 10


def test_the_reported_accuracy_is_the_mean_of_the_last_five_evaluations(learned):
    workdir, results = learned
    lines = (workdir / "generation_00" / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line)["test"]["ema"] for line in lines]
    assert len(history) == 6
    for field in ("accuracy", "accuracy_logit_adjusted"):
        mean = np.mean([evaluation[field] for evaluation in history[-5:]])
        assert results[field] == pytest.approx(mean, abs=1e-9)
    recalls = np.mean([evaluation["per_class_recall"] for evaluation in history[-5:]], axis=0)
    np.testing.assert_allclose(results["per_class_recall"], recalls)
    result = results["generations"][0]
    assert result["best_on_test"]["accuracy"] == max(e["accuracy"] for e in history)


def test_a_validation_split_selects_without_looking_at_the_test_set(learned):
    workdir, results = learned
    lines = (workdir / "generation_00" / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    scores = [line["validation"]["ema"]["accuracy"] for line in history]
    chosen = results["generations"][0]["selected_on_validation"]
    assert chosen["validation_accuracy"] == max(scores)
    assert chosen["step"] == history[scores.index(max(scores))]["step"]
    assert chosen["accuracy"] == history[scores.index(max(scores))]["test"]["ema"]["accuracy"]
    validation = set(loading.load_images(workdir / "splits" / "validation").ids)
    training = set(loading.load_images(workdir / "generation_00" / "labeled").ids)
    assert validation
    assert not validation & training


def test_a_finished_run_is_told_again_without_its_images(learned, tiny_config, monkeypatch, capsys):
    workdir, results = learned
    config = tiny_config(LEARNED_ARGUMENTS, **LEARNED)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "are_whole", lambda folder: False)
        generations.run(config, workdir)
    with_images = capsys.readouterr().out
    monkeypatch.setattr(generations, "prepare", None)
    told = generations.run(config, workdir)
    assert capsys.readouterr().out == with_images
    assert "accuracy" in with_images
    written = json.loads((workdir / "results.json").read_text())
    assert json.loads(json.dumps(told)) == {k: v for k, v in written.items() if k != "digest"}
    assert written == results


def test_tensorboard_events_are_written(learned):
    workdir, _ = learned
    assert list((workdir / "generation_00").glob("events.out.tfevents.*"))


def test_non_finite_loss_stops_with_earlier_results_kept(tiny_config, tmp_path):
    config = tiny_config("rebalance=none", **{"optimizer.learning_rate": 1e30, "generations": 1})
    with pytest.raises(NonFiniteError, match=r"generation 1 of 1: .*(loss|params) .* at step \d"):
        job.run(config, tmp_path / "run")
    generation = tmp_path / "run" / "generation_00"
    assert not (generation / "result.json").exists()
    assert not [path for path in (generation / "checkpoints").iterdir() if path.name.isdigit()]
    assert loading.load_images(tmp_path / "run" / "splits" / "labeled").ids


def test_non_finite_weights_are_not_saved(tiny_config, tmp_path):
    """The loss of the only step is that of the fresh weights, and finite."""
    config = tiny_config(
        "rebalance=none",
        **{"optimizer.learning_rate": 3e38, "optimizer.weight_decay": 100.0, "generations": 1,
           "steps": 1, "eval_every": 1, "checkpoint_every": 1},
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"params/.* is NaN or infinite at step 1\."):
        job.run(config, tmp_path / "run")
    folder = tmp_path / "run" / "generation_00"
    assert not [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert not (folder / "metrics.jsonl").exists()


def test_after_nan_a_run_continues_with_other_random_numbers(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """Step 10 of the first generation gives NaN, with the random numbers of this seed."""
    config = tiny_config()
    unlucky = jax.random.key_data(program.generation_keys(config, 0)[1])
    make = program.make_train_step

    def make_unlucky(*arguments, **options):
        step = make(*arguments, **options)

        def unlucky_step(state, batch, inputs):
            hit = (state.step == 9) & (jax.random.key_data(inputs.key) == unlucky).all()
            new_state, metrics = step(state, batch, inputs)
            metrics["unlabeled_loss"] = jnp.where(hit, jnp.nan, metrics["unlabeled_loss"])
            return new_state, metrics

        return unlucky_step

    monkeypatch.setattr(program, "make_train_step", make_unlucky)
    workdir = tmp_path / "run"
    for _ in range(2):  # the same again makes it no better
        with pytest.raises(NonFiniteError, match=r"unlabeled_loss is nan at step 10.*--config.res"):
            job.run(config, workdir)
    here = workdir / "generation_00"
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["6", "8"]
    before = (here / "metrics.jsonl").read_text()
    config.reseed = 1
    capsys.readouterr()
    job.run(config, workdir)
    assert "generation 1 of 2 continues at step 8 of 12" in capsys.readouterr().out
    assert (here / "metrics.jsonl").read_text().startswith(before)
    results = files.read_json(workdir / "results.json")
    assert [generation["reseed"] for generation in results["generations"]] == [1, 1]


@pytest.mark.parametrize("split", ["labeled", "test"])
def test_a_damaged_split_stops_the_run(tiny_config, tmp_path, split):
    config = tiny_config()
    preparation.prepare(config, tmp_path / "splits", tmp_path / "unreadable.csv")
    shard = tmp_path / "splits" / split / "shard-00001-of-00002.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:-30])
    with pytest.raises(DataError, match=rf"{shard.name} is truncated at byte {len(content) - 30}"):
        loading.load(config.data, tmp_path / "splits")
    # What the message says to do helps, and gives the same files again.
    for file in shard.parent.iterdir():
        file.unlink()
    shard.parent.rmdir()
    preparation.prepare(config, tmp_path / "splits", tmp_path / "unreadable.csv")
    assert shard.read_bytes() == content


def test_a_checkpoint_without_its_evaluations_is_not_continued(learned, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(learned[0], workdir)
    (workdir / "generation_00" / "metrics.jsonl").unlink()
    (workdir / "generation_00" / "result.json").unlink()
    config = tiny_config(LEARNED_ARGUMENTS, **LEARNED)
    with pytest.raises(
        WorkdirError,
        match=r"no checkpoint in .*has 0 of the 6 evaluations until step 150: move .*_00 elsewhere",
    ):
        job.run(config, workdir)


class Wiring:
    """A run whose model is replaced by a table, to see what is passed to what."""

    def __init__(self, config, folder):
        self.config = config
        preparation.prepare(config, folder / "splits", folder / "unreadable.csv")
        self.splits = loading.load(config.data, folder / "splits")
        self.predicted_with = []
        built = program.build(config, self.splits)._replace(
            new_state=lambda key: None, train_steps=None, at_once=2, predict=self.predict
        )
        self.run = program.Run(RunFolder(folder), self.splits, built)

    def predict(self, params, batch_stats, images, adjustment):
        self.predicted_with.append((params, batch_stats))
        labels = self.splits.unlabeled.images.labels.copy()
        labels[::3] = 9  # a third of the pseudo-labels are wrong
        confidence = np.linspace(0.2, 1.0, len(labels)).astype(np.float32)
        return evaluate.Classification(labels, confidence, labels)

    def pseudo_labels(self, generation):
        unused = dict.fromkeys(TrainState._fields)
        state = TrainState(
            **unused
            | {
                "ema_params": "ema",
                "ema_batch_stats": "of ema",
                "params": "raw",
                "labeled_distribution": np.full(10, 0.1),
            }
        )
        return self_training.score_unlabeled(self.run, generation, state)


@pytest.fixture
def wiring(tiny_config, tmp_path):
    return Wiring(tiny_config(**{"generations": 3}), tmp_path)


def test_the_ema_model_scores_and_the_rarest_class_keeps_all(wiring):
    scored = wiring.pseudo_labels(0)
    assert wiring.predicted_with == [("ema", "of ema")]
    for label, rate in ((0, 0.1 ** (1 / 3)), (9, 1)):  # gamma = 10
        predicted = scored.labels == label
        assert scored.selected[predicted].sum() == int(predicted.sum() * rate)
    assert not wiring.pseudo_labels(2).selected.any()  # the last generation has no successor


def test_rates_by_hand_take_the_place_of_alphas(tiny_config, tmp_path):
    rates = (0.0, 1.0, 0.25, *[0.5] * 7)
    wiring = Wiring(tiny_config("rebalance=crest", **{"crest.rates": rates}), tmp_path)
    scored = wiring.pseudo_labels(0)
    predicted = np.bincount(scored.labels, minlength=10)
    selected = np.bincount(scored.labels[scored.selected], minlength=10)
    assert selected.tolist() == [
        int(count * rate) for count, rate in zip(predicted, rates, strict=True)
    ]


def test_rates_of_other_classes_are_refused_before_training(tiny_config, tmp_path):
    config = tiny_config("rebalance=crest", **{"crest.rates": (1.0, 0.5)})
    with pytest.raises(ConfigError, match=r"crest.rates has 2 entries for 10 classes: give one"):
        job.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "generation_00").exists()


def test_selections_replace_each_other_and_do_not_accumulate(wiring):
    original, unlabeled = wiring.splits.labeled.images, wiring.splits.unlabeled.images
    for generation in (0, 1):
        chosen = np.zeros(len(unlabeled.ids), bool)
        chosen[[generation, 10]] = True
        scored = wiring.pseudo_labels(generation)._replace(selected=chosen)
        pseudo_labels.write(wiring.run.folder.generation(generation).pseudo_labels, scored)
        self_training.rewrite_labeled(wiring.run, generation + 1)
        labeled = loading.load_images(wiring.run.folder.generation(generation + 1).labeled)
        ids = [unlabeled.ids[row] for row in (generation, 10)]
        assert labeled.ids == [*original.ids, *ids]
        assert labeled.labels[-2:].tolist() == scored.labels[chosen].tolist()
        np.testing.assert_array_equal(labeled.images[:-2], original.images)
        np.testing.assert_array_equal(labeled.images[-2:], unlabeled.images[[generation, 10]])


@pytest.fixture
def second_generation(monkeypatch):
    """The inputs of the second generation of a wired run."""
    seen = {}

    def batches(labeled, unlabeled, **where):
        seen.update(labeled=labeled, unlabeled=unlabeled, **where)
        return iter(())

    def train(state, step, batches, constants, evaluation, **kwargs):
        list(batches(7))
        seen.update(constants=constants(None))
        return TrainState(*[None] * len(TrainState._fields))

    monkeypatch.setattr(pipeline, "batches", batches)
    monkeypatch.setattr(generations, "train", train)

    def of(wiring):
        folder = wiring.run.folder.generation(0).pseudo_labels
        pseudo_labels.write(folder, wiring.pseudo_labels(0))
        self_training.rewrite_labeled(wiring.run, 1)
        generations.train_generation(wiring.run, 1)
        return seen

    return of


def test_what_a_later_generation_trains_with(wiring, second_generation):
    """The selection on top of the labeled set; all images; t of Eq. 2; p(y) of the long tail."""
    seen, data = second_generation(wiring), wiring.splits
    assert seen["labeled_probabilities"] is None
    np.testing.assert_array_equal(seen["constants"].class_weights, 1)
    labeled, unlabeled = data.labeled.images, data.unlabeled.images
    assert len(seen["labeled"].ids) > len(labeled.ids)
    assert seen["unlabeled"].ids == labeled.ids + unlabeled.ids
    assert (seen["generation"], seen["start"], seen["stop"]) == (1, 7, 12)
    assert seen["seed"] == program.seed_of_streams(wiring.config)
    assert seen["constants"].temperature == pytest.approx(0.75)
    formula = 10 ** (-np.arange(10) / 9)
    target = seen["constants"].target_distribution
    np.testing.assert_allclose(target, formula / formula.sum(), rtol=1e-6)


def test_the_unlabeled_stream_may_leave_the_labeled_images_out(
    tiny_config, tmp_path, second_generation
):
    wiring = Wiring(
        tiny_config("rebalance=crest", generations=3, **{"data.labeled_in_unlabeled": False}),
        tmp_path,
    )
    assert second_generation(wiring)["unlabeled"].ids == wiring.splits.unlabeled.images.ids


def test_a_run_that_stopped_between_comes_back_to_where_it_evaluates(
    tiny_config, tmp_path, monkeypatch
):
    """It continues from step 7 of 12, with evaluations every 6 steps and checkpoints every 4."""
    wiring = Wiring(tiny_config(), tmp_path)
    given = []

    def train(state, steps, batches, *_, **__):
        given.extend(len(several.labels) for several in batches(7))
        return TrainState(*[None] * len(TrainState._fields))

    monkeypatch.setattr(generations, "train", train)
    self_training.rewrite_labeled(wiring.run, 0)
    generations.train_generation(wiring.run, 0)
    assert given == [1, 2, 2]


@pytest.mark.parametrize("rebalance", ["crest_plus+cb", "crest_plus+rs"])
def test_the_labeled_set_of_the_generation_is_what_cb_and_rs_count(
    tiny_config, tmp_path, second_generation, rebalance
):
    wiring = Wiring(tiny_config(f"rebalance={rebalance}", generations=3), tmp_path)
    seen = second_generation(wiring)
    counts = np.bincount(seen["labeled"].labels, minlength=10)
    assert (counts != wiring.splits.labeled.per_class).any()
    weights = (1 - 0.999) / (1 - 0.999**counts)
    each = 1 / (10 * counts)
    if "cb" in rebalance:
        expected = weights / weights.mean()
        np.testing.assert_allclose(seen["constants"].class_weights, expected, rtol=1e-5)
        assert seen["labeled_probabilities"] is None
    else:
        np.testing.assert_allclose(seen["labeled_probabilities"], each[seen["labeled"].labels])
        np.testing.assert_array_equal(seen["constants"].class_weights, 1)
