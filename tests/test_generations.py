import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_experiment

from crest_jax import distributed, evaluate, files, generations, main, results, train
from crest_jax.cpu import library
from crest_jax.data import pseudo_labels, records, splits
from crest_jax.errors import ConfigError, DataError, NonFiniteError, WorkdirError
from crest_jax.rebalancing import darp
from crest_jax.train_state import TrainState
from crest_jax.workdir import generation_folder

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
    main.run(config, workdir)
    return workdir, json.loads((workdir / "results.json").read_text())


def test_the_second_generation_compiles_nothing(
    tiny_config, tiny_model, tmp_path, caplog, monkeypatch
):
    """By JAX's own log."""
    logged_before = []
    run_generation = generations.run_generation

    def noted(*arguments):
        logged_before.append(len(caplog.records))
        return run_generation(*arguments)

    monkeypatch.setattr(generations, "run_generation", noted)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        main.run(tiny_config(**tiny_model), tmp_path / "run")
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
    validation = set(records.load(workdir / "splits" / "validation").ids)
    training = set(records.load(workdir / "generation_00" / "labeled").ids)
    assert validation
    assert not validation & training


def test_tensorboard_events_are_written(learned):
    workdir, _ = learned
    assert list((workdir / "generation_00").glob("events.out.tfevents.*"))


def test_non_finite_loss_stops_with_earlier_results_kept(tiny_config, tmp_path):
    config = tiny_config("rebalance=none", **{"optimizer.learning_rate": 1e30, "generations": 1})
    with pytest.raises(NonFiniteError, match=r"generation 1 of 1: .*(loss|params) .* at step \d"):
        main.run(config, tmp_path / "run")
    generation = tmp_path / "run" / "generation_00"
    assert not (generation / "result.json").exists()
    assert not [path for path in (generation / "checkpoints").iterdir() if path.name.isdigit()]
    assert records.load(tmp_path / "run" / "splits" / "labeled").ids


def test_non_finite_weights_are_not_saved(tiny_config, tmp_path):
    """The loss of the only step is that of the fresh weights, and finite."""
    config = tiny_config(
        "rebalance=none",
        **{"optimizer.learning_rate": 3e38, "optimizer.momentum": 1.0, "generations": 1, "steps": 1,
           "eval_every": 1, "checkpoint_every": 1},
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"params/.* is NaN or infinite at step 1\."):
        main.run(config, tmp_path / "run")
    folder = tmp_path / "run" / "generation_00"
    assert not [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert not (folder / "metrics.jsonl").exists()


def test_the_terms_that_are_not_finite_first_are_named():
    """Steps 5 to 8, sent two at a time: one term is infinite at step 7, others follow."""
    two = [jnp.array([0.5, 0.25]), jnp.array([0.125, jnp.nan])]
    pending = [
        {"loss": two[0], "labeled_loss": two[0], "unlabeled_loss": two[0]},
        {"loss": two[1], "labeled_loss": two[0], "unlabeled_loss": jnp.array([jnp.inf, jnp.nan])},
    ]
    with pytest.raises(
        NonFiniteError, match=r"a run: unlabeled_loss is inf at step 7\. "
    ) as caught:
        train._average(pending, last_step=8, title="a run")
    assert "labeled_loss is 0" not in str(caught.value)
    whole = train._average(pending[:1] * 2, last_step=8, title="a run")
    assert whole == {"loss": 0.375, "labeled_loss": 0.375, "unlabeled_loss": 0.375}


def test_after_nan_a_run_continues_with_other_random_numbers(
    tiny_config, tiny_model, tmp_path, monkeypatch, capsys
):
    """Step 10 of the first generation gives NaN, with the random numbers of this seed."""
    config = tiny_config(**tiny_model)
    unlucky = jax.random.key_data(generations.generation_keys(config, 0)[1])
    make = generations.make_train_step

    def make_unlucky(*arguments, **options):
        step = make(*arguments, **options)

        def unlucky_step(state, batch, inputs):
            hit = (state.step == 9) & (jax.random.key_data(inputs.key) == unlucky).all()
            new_state, metrics = step(state, batch, inputs)
            metrics["unlabeled_loss"] = jnp.where(hit, jnp.nan, metrics["unlabeled_loss"])
            return new_state, metrics

        return unlucky_step

    monkeypatch.setattr(generations, "make_train_step", make_unlucky)
    workdir = tmp_path / "run"
    for _ in range(2):  # the same again makes it no better
        with pytest.raises(NonFiniteError, match=r"unlabeled_loss is nan at step 10.*--config.res"):
            main.run(config, workdir)
    here = workdir / "generation_00"
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["6", "8"]
    before = (here / "metrics.jsonl").read_text()
    config.reseed = 1
    capsys.readouterr()
    main.run(config, workdir)
    assert "generation 1 of 2 continues at step 8 of 12" in capsys.readouterr().out
    assert (here / "metrics.jsonl").read_text().startswith(before)
    results = files.read_json(workdir / "results.json")
    assert [generation["reseed"] for generation in results["generations"]] == [1, 1]


def test_reseeding_changes_the_order_of_examples_and_the_random_numbers_but_no_first_weights(
    tiny_config,
):
    first, second = tiny_config(), tiny_config(reseed=1)
    (init, steps), (same, other) = (generations.generation_keys(c, 0) for c in (first, second))
    assert init == same
    assert steps != other
    assert generations.seed_of_streams(first) != generations.seed_of_streams(second)


def test_a_fold_changes_the_first_weights_the_order_of_examples_and_the_random_numbers(tiny_config):
    """Where the labeled images are given, folds would else be one and the same run."""
    seen = set()
    for fold in range(5):
        config = tiny_config(f"fold={fold}")
        keys = generations.generation_keys(config, 0)
        seen |= {tuple(jax.random.key_data(key).tolist()) for key in keys}
        seen.add(generations.seed_of_streams(config))
    assert len(seen) == 5 * 3
    config = tiny_config("fold=4")
    assert generations.seed_of_streams(config) in seen
    # Places of a stream, its epochs and what is drawn there are made from 64 bits.
    assert 0 <= generations.seed_of_streams(tiny_config(seed=2**31 - 1, reseed=2**31 - 1)) < 2**63


def of_classes(per_class, unlabeled):
    """Splits of these sizes, without their images."""
    split = splits.Split(sum(per_class), np.array(per_class), ())
    nothing = splits.Split(0, np.zeros(len(per_class), int), ())
    of_unlabeled = splits.Split(unlabeled, None, ())
    names = tuple(map(str, range(len(per_class))))
    return splits.Splits(split, of_unlabeled, split, nothing, names, (8, 8, 1))


def test_rates_and_target_are_of_the_long_tails_formula_or_of_the_labeled_counts():
    """CIFAR100-LT, gamma = 100, beta = 10 %, where rounding up makes the largest difference."""
    config = load_experiment("cifar100_lt", "gamma=100,beta=0.1,rebalance=crest_plus")
    formula = 100 ** (-np.arange(100) / 99)
    counts = np.ceil(np.floor(500 * formula + 1e-6) * 0.1 - 1e-9).astype(int)
    assert (counts[0], counts[-1]) == (50, 1)
    data = of_classes(counts.tolist(), 9573)
    for name, p, largest in (("ideal", formula, 0.215), ("counts", counts, 0.271)):
        config.class_distribution = name
        rates = generations.sampling_rates(config, data)
        np.testing.assert_allclose(rates, (p[::-1] / p[0]) ** (1 / 3))
        assert rates[0] == pytest.approx(largest, abs=5e-4)
        target = generations.target_distribution(config, data, None)
        np.testing.assert_allclose(target, p / p.sum())


def test_the_target_is_of_what_is_in_the_unlabeled_stream():
    config = load_experiment("cifar10_darp", "rebalance=da,target=given,gamma_u=1")
    given = np.array(config.unlabeled_distribution.given)
    labeled = np.array([40, 30, 20, 10, 9, 8, 7, 6, 5, 5])
    data = of_classes(labeled.tolist(), 60)
    both = labeled + 60 * given / given.sum()
    np.testing.assert_allclose(
        generations.target_distribution(config, data, None), both / both.sum()
    )
    assert generations.unlabeled_stream(config, data) == (200, ["labeled", "unlabeled"])
    config.data.labeled_in_unlabeled = False
    np.testing.assert_allclose(
        generations.target_distribution(config, data, None), given / given.sum()
    )
    assert generations.unlabeled_stream(config, data) == (60, ["unlabeled"])


@pytest.mark.parametrize("split", ["labeled", "test"])
def test_a_damaged_split_stops_the_run(tiny_config, tmp_path, split):
    config = tiny_config()
    splits.prepare(config, tmp_path / "splits")
    shard = tmp_path / "splits" / split / "shard-00001-of-00002.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:-30])
    with pytest.raises(DataError, match=rf"{shard.name} is truncated at byte {len(content) - 30}"):
        splits.load(config.data, tmp_path / "splits")
    # What the message says to do helps, and gives the same files again.
    for file in shard.parent.iterdir():
        file.unlink()
    shard.parent.rmdir()
    splits.prepare(config, tmp_path / "splits")
    assert shard.read_bytes() == content


def evaluation(step):
    """A line of metrics.jsonl, of two classes."""
    matrices = ("confusion_matrix", "confusion_matrix_logit_adjusted")
    of_weights = {"accuracy": 50.0, **{name: [[1, 0], [1, 0]] for name in matrices}}
    return {"step": step, "seconds": 1.0, "test": {"ema": of_weights, "raw": of_weights}}


def test_metrics_after_the_last_checkpoint_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / train.METRICS
    lines = [json.dumps(evaluation(step)) for step in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 40, "te')
    assert [line["step"] for line in train.keep_metrics(path, up_to=20)] == [10, 20]
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


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
        main.run(config, workdir)


def test_each_generation_starts_from_other_weights(tiny_config, tmp_path):
    config = tiny_config()
    splits.prepare(config, tmp_path / "splits")
    program = generations.build(config, splits.load(config.data, tmp_path / "splits"))
    first, again, second = (
        jax.device_get(program.new_state(generations.generation_keys(config, number)[0]).params)
        for number in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [params["Conv_0"]["kernel"] for params in (first, second)]
    assert not np.allclose(*kernels)


class Wiring:
    """A run whose model is replaced by a table, to see what is passed to what."""

    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        splits.prepare(config, folder / "splits")
        self.splits = splits.load(config.data, folder / "splits")
        self.predicted_with = []
        self.program = generations.Program(
            distributed.data_mesh(),
            distributed.local_mesh(),
            lambda key: None,
            None,
            2,
            self.predict,
        )

    def predict(self, params, batch_stats, images, adjustment):
        self.predicted_with.append((params, batch_stats))
        labels = self.splits.unlabeled.images.labels.copy()
        labels[::3] = 9  # a third of the pseudo-labels are wrong
        confidence = np.linspace(0.2, 1.0, len(labels)).astype(np.float32)
        return evaluate.Predictions(labels, confidence, labels)

    def pseudo_labels(self, generation):
        unused = dict.fromkeys(TrainState._fields)
        state = TrainState(
            **unused | {"ema_params": "ema", "ema_batch_stats": "of ema", "params": "raw"}
        )
        return generations.score_unlabeled(
            self.config, generation, state, self.splits, self.program
        )


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


def test_rates_of_other_classes_are_refused_before_training(tiny_config, tiny_model, tmp_path):
    config = tiny_config("rebalance=crest", **tiny_model, **{"crest.rates": (1.0, 0.5)})
    with pytest.raises(ConfigError, match=r"crest.rates has 2 entries for 10 classes: give one"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "generation_00").exists()


def test_selections_replace_each_other_and_do_not_accumulate(wiring):
    original, unlabeled = wiring.splits.labeled.images, wiring.splits.unlabeled.images
    for generation in (0, 1):
        chosen = np.zeros(len(unlabeled.ids), bool)
        chosen[[generation, 10]] = True
        scored = wiring.pseudo_labels(generation)._replace(selected=chosen)
        pseudo_labels.write(generation_folder(wiring.folder, generation) / "pseudo_labels", scored)
        generations.rewrite_labeled(wiring.config, wiring.folder, generation + 1, wiring.splits)
        labeled = records.load(generation_folder(wiring.folder, generation + 1) / "labeled")
        ids = [unlabeled.ids[row] for row in (generation, 10)]
        assert labeled.ids == [*original.ids, *ids]
        assert labeled.labels[-2:].tolist() == scored.labels[chosen].tolist()
        np.testing.assert_array_equal(labeled.images[:-2], original.images)
        np.testing.assert_array_equal(labeled.images[-2:], unlabeled.images[[generation, 10]])


@pytest.fixture
def second_generation(monkeypatch):
    """What the second generation of a wired run trains with."""
    seen = {}

    def batches(labeled, unlabeled, **where):
        seen.update(labeled=labeled, unlabeled=unlabeled, **where)
        return iter(())

    def train(state, step, batches, constants, evaluation, **kwargs):
        list(batches(7))
        seen.update(constants=constants(None))
        return TrainState(*[None] * len(TrainState._fields))

    monkeypatch.setattr(generations.pipeline, "batches", batches)
    monkeypatch.setattr(generations, "train", train)

    def of(wiring):
        first, second = (generation_folder(wiring.folder, number) for number in (0, 1))
        pseudo_labels.write(first / "pseudo_labels", wiring.pseudo_labels(0))
        generations.rewrite_labeled(wiring.config, wiring.folder, 1, wiring.splits)
        generations.train_generation(wiring.config, second, 1, wiring.splits, wiring.program)
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
    assert seen["seed"] == generations.seed_of_streams(wiring.config)
    assert seen["constants"].temperature == pytest.approx(0.75)
    formula = 10 ** (-np.arange(10) / 9)
    target = seen["constants"].target_distribution
    np.testing.assert_allclose(target, formula / formula.sum(), rtol=1e-6)
    wiring.config.data.labeled_in_unlabeled = False
    assert second_generation(wiring)["unlabeled"].ids == unlabeled.ids


@pytest.mark.parametrize(
    ("changes", "devices", "expected"),
    [
        ({}, 1, 8),  # the paper's, of 1 MiB a step
        ({"steps_at_once": 3}, 1, 2),  # the next smaller divisor of 1024
        ({"steps": 600, "eval_every": 20, "checkpoint_every": 200}, 1, 5),
        ({"steps": 12, "eval_every": 1024, "checkpoint_every": 9}, 1, 3),  # evaluates at the end
        ({"steps": 7, "eval_every": 3}, 1, 1),
        ({"batch_size": 64 * 24}, 1, 1),  # 36 MiB
        ({"batch_size": 64 * 24}, 8, 8),
    ],
)
def test_as_many_steps_are_sent_together_as_fit_between_evaluations_and_into_memory(
    changes, devices, expected, monkeypatch
):
    config = load_experiment("cifar10_lt", **changes)
    monkeypatch.setattr(library, "kernels", lambda: library.Kernels(lanes=8, tiles=False))
    assert generations.steps_at_once(config, (32, 32, 3), devices=devices) == expected


def test_xlas_convolutions_are_not_looped_over_on_a_cpu(monkeypatch):
    config = load_experiment("cifar10_lt")
    monkeypatch.setattr(library, "kernels", lambda: None)
    assert generations.steps_at_once(config, (32, 32, 3), devices=1) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert generations.steps_at_once(config, (32, 32, 3), devices=1) == 8


AVX2 = library.Kernels(lanes=8, tiles=False)
AVX512 = library.Kernels(lanes=16, tiles=False)
AMX = library.Kernels(lanes=16, tiles=True)
FASTER = "; --config.dtype=bfloat16 would be faster here"


@pytest.mark.parametrize(
    ("kernels", "fields", "said"),
    [
        (None, {}, "float32 and bfloat16: XLA"),
        (AVX2, {}, "float32 and bfloat16: 256-bit kernels"),
        (AVX512, {}, "float32 and bfloat16: AVX-512 kernels"),
        (AMX, {}, f"float32: AVX-512 kernels; bfloat16 and precision=high: AMX{FASTER}"),
        *(
            (AMX, fields, "float32: AVX-512 kernels; bfloat16 and precision=high: AMX")
            for fields in ({"dtype": "bfloat16"}, {"precision": "high"}, {"precision": "highest"})
        ),
    ],
)
def test_a_run_says_who_computes_on_a_cpu(monkeypatch, kernels, fields, said):
    monkeypatch.setattr(library, "kernels", lambda: kernels)
    config = load_experiment("cifar10_lt", **fields)
    assert generations.who_computes(config) == said
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert generations.who_computes(config) is None


def test_a_run_that_stopped_between_comes_back_to_where_it_evaluates(
    tiny_config, tmp_path, monkeypatch
):
    """From step 7 of 12, with evaluations every 6 steps and checkpoints every 4."""
    wiring = Wiring(tiny_config(), tmp_path)
    given = []

    def train(state, steps, batches, *_, **__):
        given.extend(len(several.labels) for several in batches(7))
        return TrainState(*[None] * len(TrainState._fields))

    monkeypatch.setattr(generations, "train", train)
    generations.rewrite_labeled(wiring.config, wiring.folder, 0, wiring.splits)
    here = generation_folder(wiring.folder, 0)
    generations.train_generation(wiring.config, here, 0, wiring.splits, wiring.program)
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


@pytest.mark.parametrize("rebalance", ["none", "darp", "crest+darp"])
def test_darp_keeps_a_pseudo_label_of_every_image_and_refines_on_schedule(
    tiny_config, tiny_model, tmp_path, monkeypatch, rebalance
):
    changes = {"generations": 1 + ("crest" in rebalance), "darp.start": 0.5, "darp.every": 3}
    config = tiny_config(f"rebalance={rebalance}", **{**tiny_model, **changes})
    splits.prepare(config, tmp_path / "splits")
    data = splits.load(config.data, tmp_path / "splits")
    made = {}
    monkeypatch.setattr(
        generations, "make_train_step", lambda *_, **options: made.update(options) or print
    )
    program = generations.build(config, data)
    kept = jax.eval_shape(program.new_state, jax.random.key(0)).darp
    if rebalance == "none":
        assert made["refinement"] is kept is None
        return
    assert made["refinement"] == darp.Schedule(start=6, every=3, delta=2.0)
    examples = data.labeled.examples + data.unlabeled.examples
    assert kept.pseudo_labels.shape == kept.refined.shape == (examples, 10)


def test_nothing_is_refined_before_the_first_step(tiny_config):
    config = tiny_config("rebalance=darp", **{"generations": 1, "darp.start": 0.0})
    assert generations._refinement(config).start == 1


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[]", b'{"step": "6"}', b'{"step": NaN}', b"[" * 100_000, b'{"step": 6}'],
    ids=len,
)
def test_a_line_that_is_no_evaluation_is_dropped_with_those_after_it(tmp_path, line):
    path = tmp_path / train.METRICS
    first, last = (json.dumps(evaluation(step)).encode() + b"\n" for step in (6, 12))
    path.write_bytes(first + line + b"\n" + last)
    assert train.keep_metrics(path, up_to=20) == [evaluation(6)]
    assert path.read_bytes() == first


def test_evaluations_of_other_classes_are_refused(tmp_path):
    results.check_classes(evaluation(6), 2, tmp_path / train.METRICS)
    with pytest.raises(WorkdirError, match="step 6 is of 2 classes, not 3"):
        results.check_classes(evaluation(6), 3, tmp_path / train.METRICS)


def test_the_steps_of_the_longest_run_are_not_listed():
    schedule = train.Schedule(2**31 - 1, 1, 1)
    assert train.reported_steps(schedule) == list(range(2**31 - 5, 2**31))
    assert train.reported_steps(train.Schedule(12, 5, 1)) == [5, 10, 12]
