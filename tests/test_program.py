import jax
import numpy as np
import pytest
from conftest import load_experiment

from crest_jax import program
from crest_jax.cpu import library
from crest_jax.data import loading, preparation, splits
from crest_jax.rebalancing import darp


def test_reseeding_changes_the_order_of_examples_and_the_random_numbers_but_no_first_weights(
    tiny_config,
):
    first, second = tiny_config(), tiny_config(reseed=1)
    (init, steps), (same, other) = (program.generation_keys(c, 0) for c in (first, second))
    assert init == same
    assert steps != other
    assert program.seed_of_streams(first) != program.seed_of_streams(second)


def test_a_fold_changes_the_first_weights_the_order_of_examples_and_the_random_numbers(tiny_config):
    """Where the labeled images are given, folds would otherwise be the same run."""
    seen = set()
    for fold in range(5):
        config = tiny_config(f"fold={fold}")
        keys = program.generation_keys(config, 0)
        seen |= {tuple(jax.random.key_data(key).tolist()) for key in keys}
        seen.add(program.seed_of_streams(config))
    assert len(seen) == 5 * 3
    config = tiny_config("fold=4")
    assert program.seed_of_streams(config) in seen
    # Places of a stream, its epochs and what is drawn there are made from 64 bits.
    assert 0 <= program.seed_of_streams(tiny_config(seed=2**31 - 1, reseed=2**31 - 1)) < 2**63


def of_classes(per_class, unlabeled):
    """Splits of these sizes, without their images."""
    split = splits.Split(sum(per_class), np.array(per_class), ())
    nothing = splits.Split(0, np.zeros(len(per_class), int), ())
    of_unlabeled = splits.Split(unlabeled, None, ())
    names = tuple(map(str, range(len(per_class))))
    return splits.Splits(split, of_unlabeled, split, nothing, names, (8, 8, 1))


def test_rates_and_target_are_of_the_long_tails_formula_or_of_the_labeled_counts():
    """The setting is CIFAR100-LT, gamma = 100, beta = 10 %, where rounding up matters most."""
    config = load_experiment("cifar100_lt", "gamma=100,beta=0.1,rebalance=crest_plus")
    formula = 100 ** (-np.arange(100) / 99)
    counts = np.ceil(np.floor(500 * formula + 1e-6) * 0.1 - 1e-9).astype(int)
    assert (counts[0], counts[-1]) == (50, 1)
    data = of_classes(counts.tolist(), 9573)
    for name, p, largest in (("ideal", formula, 0.215), ("counts", counts, 0.271)):
        config.class_distribution = name
        rates = program.sampling_rates(config, data)
        np.testing.assert_allclose(rates, (p[::-1] / p[0]) ** (1 / 3))
        assert rates[0] == pytest.approx(largest, abs=5e-4)
        target = program.target_distribution(config, data, None)
        np.testing.assert_allclose(target, p / p.sum())


def test_the_target_is_of_what_is_in_the_unlabeled_stream():
    config = load_experiment("cifar10_darp", "rebalance=da,target=given,gamma_u=1")
    given = np.array(config.unlabeled_distribution.given)
    labeled = np.array([40, 30, 20, 10, 9, 8, 7, 6, 5, 5])
    data = of_classes(labeled.tolist(), 60)
    both = labeled + 60 * given / given.sum()
    np.testing.assert_allclose(program.target_distribution(config, data, None), both / both.sum())
    assert program.unlabeled_examples(config, data) == 200
    config.data.labeled_in_unlabeled = False
    np.testing.assert_allclose(program.target_distribution(config, data, None), given / given.sum())
    assert program.unlabeled_examples(config, data) == 60


def test_each_generation_starts_from_other_weights(tiny_config, tmp_path):
    config = tiny_config()
    preparation.prepare(config, tmp_path / "splits", tmp_path / "unreadable.csv")
    built = program.build(config, loading.load(config.data, tmp_path / "splits"))
    first, again, second = (
        jax.device_get(built.new_state(program.generation_keys(config, number)[0]).params)
        for number in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [params["Conv_0"]["kernel"] for params in (first, second)]
    assert not np.allclose(*kernels)


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
    assert program.steps_at_once(config, (32, 32, 3), devices=devices) == expected


def test_xlas_convolutions_are_not_looped_over_on_a_cpu(monkeypatch):
    config = load_experiment("cifar10_lt")
    monkeypatch.setattr(library, "kernels", lambda: None)
    assert program.steps_at_once(config, (32, 32, 3), devices=1) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert program.steps_at_once(config, (32, 32, 3), devices=1) == 8


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
    assert program.who_computes(config) == said
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert program.who_computes(config) is None


@pytest.mark.parametrize("rebalance", ["none", "darp", "crest+darp"])
def test_darp_keeps_a_pseudo_label_of_every_image_and_refines_on_schedule(
    tiny_config, tmp_path, monkeypatch, rebalance
):
    changes = {"generations": 1 + ("crest" in rebalance), "darp.start": 0.5, "darp.every": 3}
    config = tiny_config(f"rebalance={rebalance}", **changes)
    preparation.prepare(config, tmp_path / "splits", tmp_path / "unreadable.csv")
    data = loading.load(config.data, tmp_path / "splits")
    made = {}
    monkeypatch.setattr(
        program, "make_train_step", lambda *_, **options: made.update(options) or print
    )
    built = program.build(config, data)
    kept = jax.eval_shape(built.new_state, jax.random.key(0)).darp
    if rebalance == "none":
        assert made["refinement"] is kept is None
        return
    assert made["refinement"] == darp.Refinement(start=6, every=3, delta=2.0)
    examples = data.labeled.examples + data.unlabeled.examples
    assert kept.pseudo_labels.shape == kept.refined.shape == (examples, 10)


def test_nothing_is_refined_before_the_first_step(tiny_config):
    config = tiny_config("rebalance=darp", **{"generations": 1, "darp.start": 0.0})
    assert program.refinement_of(config).start == 1


def test_stages_are_given_values_and_no_config(tiny_config, tmp_path):
    changes = {"seed": 3, "reseed": 2, "data.shards": 2, "logit_adjustment_tau": 0.5}
    config = tiny_config(**changes)
    preparation.prepare(config, tmp_path / "splits", tmp_path / "unreadable.csv")
    built = program.build(config, loading.load(config.data, tmp_path / "splits"))
    assert (built.seed, built.reseed, built.shards, built.tau) == (3, 2, 2, 0.5)
    assert "config" not in program.Run._fields


def test_batch_norm_is_synchronised_over_all_devices_a_group_or_none(tiny_config, tmp_path):
    config = tiny_config(sync_batch_norm_group=2)
    preparation.prepare(config, tmp_path / "splits", tmp_path / "unreadable.csv")
    built = program.build(config, loading.load(config.data, tmp_path / "splits"))
    assert dict(built.mesh.shape) == {"group": 4, "device": 2}
    assert program.batch_norm_axis(config) == "device"
    assert program.batch_norm_axis(tiny_config()) == ("group", "device")
    assert program.batch_norm_axis(tiny_config(sync_batch_norm=False)) is None
