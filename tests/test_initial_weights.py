"""Weights to start from, of files and of runs: `model.init_from`."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import load_experiment
from flax.traverse_util import flatten_dict
from tiny_net import TinyNet

from crest_jax import initial_weights, job, program, trained
from crest_jax.data import loading, preparation
from crest_jax.data.splits import Split, Splits
from crest_jax.errors import ConfigError, DataError, WorkdirError
from crest_jax.layout import RunFolder
from crest_jax.models import keras_names
from crest_jax.models.wide_resnet import WideResNet


def variables_of(model):
    return jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 8, 8, 1)), train=True),
        jax.random.key(0),
    )


def random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in flatten_dict(variables_of(model), sep="/").items()
    }


def fit(given, classes=10, name="tiny_net:TinyNet"):
    config = load_experiment("digits_lt", **{"model.name": name})
    nothing = Split(0, None, ())
    names = tuple(map(str, range(classes)))
    splits = Splits(nothing, nothing, nothing, nothing, names, (8, 8, 1))
    return initial_weights.fit(given, config, splits)


def test_all_weights_of_the_same_model_are_taken():
    given = random_weights(TinyNet(classes=10))
    fitted = fit(given)
    assert fitted.weights.keys() == given.keys()
    assert not fitted.missing + fitted.extra + fitted.new_head
    assert str(fitted) == f"{len(given)} weights taken"


def test_of_other_classes_the_head_is_new():
    fitted = fit(random_weights(TinyNet(classes=10)), classes=4)
    assert fitted.new_head == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    assert "params/Conv_0/kernel" in fitted.weights
    assert str(fitted).endswith(
        "; 2 left random, since the head is for other classes "
        "(params/Dense_0/bias, params/Dense_0/kernel)"
    )


def test_missing_and_extra_names_are_listed():
    given = random_weights(TinyNet(classes=10))
    del given["params/BatchNorm_0/scale"]
    given["params/Conv_9/kernel"] = np.zeros(3, np.float32)
    fitted = fit(given)
    assert fitted.missing == ["params/BatchNorm_0/scale"]
    assert fitted.extra == ["params/Conv_9/kernel"]
    assert "; 1 left random, since not given (params/BatchNorm_0/scale)" in str(fitted)
    assert "; 1 given, but not the model's (params/Conv_9/kernel)" in str(fitted)
    one = fit({"params/Conv_0/kernel": given["params/Conv_0/kernel"]})
    assert str(one).startswith("1 weight taken; ")


def test_weights_of_another_model_are_refused():
    given = random_weights(TinyNet(classes=10))
    with pytest.raises(DataError, match="has none of the model's weights: it has a/b, and the"):
        fit({"a/b": np.zeros(3)})
    given["params/Conv_0/kernel"] = np.zeros((5, 5, 1, 16), np.float32)
    with pytest.raises(DataError, match=r"Conv_0/kernel has shape \(5, 5, 1, 16\) instead of"):
        fit(given)


def test_the_published_networks_names_are_understood():
    model = WideResNet(classes=10, depth=10, width=1)  # that of digits_lt
    ours = random_weights(model)
    published = {
        keras_names.keras_name(tuple(name.split("/")), model.depth): value
        for name, value in ours.items()
    }
    fitted = fit(published, name="wide_resnet")
    assert fitted.weights.keys() == ours.keys()
    for name, value in fitted.weights.items():
        np.testing.assert_array_equal(value, ours[name])
    assert fit(published, classes=3, name="wide_resnet").new_head == [
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ]


@pytest.mark.parametrize("separator", ["/", "."])
def test_both_kinds_of_files_are_read(tmp_path, separator):
    given = random_weights(TinyNet(classes=10))
    named = {name.replace("/", separator): value for name, value in given.items()}
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(named))
    np.savez(str(tmp_path / "a.npz"), **named)
    for file in ("a.safetensors", "a.npz"):
        found = initial_weights.read(tmp_path / file)
        assert found.keys() == given.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, given[name])


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(DataError, match=rf"init_from=.*{name} cannot be read as .* write it again"):
        initial_weights.read(tmp_path / name)


def test_parts_of_names_may_have_dots(tmp_path):
    names = ("params/a.b/kernel", "params.c.bias:0")
    given = {name: np.ones(2, np.float32) for name in names}
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(given))
    found = initial_weights.read(tmp_path / "a.safetensors")
    assert sorted(found) == ["params/a.b/kernel", "params/c/bias"]


@pytest.mark.parametrize("name", ["missing.npz", "a.pt", "."])
def test_something_else_is_refused(tmp_path, name):
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"must be a \.safetensors or \.npz file, the folder of"):
        initial_weights.read(tmp_path / name)


# What a run keeps


@pytest.fixture
def keeping(tiny_config, tmp_path):
    """A config that names weights, the folder of a run that keeps them, and the weights."""
    config = tiny_config("rebalance=crest", **{"model.init_from": str(tmp_path / "gone.npz")})
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    given = {"params/a.b/kernel": transposed, "params/scale": np.array(0.5, np.float32)}
    initial_weights.keep(RunFolder(tmp_path), given)
    return config, RunFolder(tmp_path), given


def assert_same(found, given):
    assert found.keys() == given.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, given[name], strict=True)


def test_what_is_kept_comes_back_under_its_names(keeping):
    config, folder, given = keeping
    assert_same(initial_weights.kept(config, folder), given)


def test_any_flipped_bit_of_what_is_kept_is_found(keeping):
    """Or it changes no weight, as in the space after the header."""
    config, folder, given = keeping
    path = folder.initial_weights
    content = path.read_bytes()
    found = []
    for byte in range(len(content)):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(bytes(flipped))
        try:
            assert_same(initial_weights.kept(config, folder), given)
        except WorkdirError as error:
            found.append(str(error))
    assert len(found) > 0.9 * len(content)
    for message in found:
        assert message.startswith(f"{path} is ")
        assert message.endswith("restore it, or start over with another --workdir")


@pytest.mark.parametrize("length", [0, 7, 60, -1])
def test_a_truncated_file_is_named_with_what_to_do(keeping, length):
    config, folder, _ = keeping
    folder.initial_weights.write_bytes(folder.initial_weights.read_bytes()[:length])
    with pytest.raises(WorkdirError, match=r"initial_weights\.safetensors is damaged .*restore it"):
        initial_weights.kept(config, folder)


def test_once_a_generation_has_begun_the_source_is_not_read_again(keeping):
    """It may have changed; before that, a run that was killed reads it."""
    config, folder, given = keeping
    np.savez(config.model.init_from, **given)
    folder.initial_weights.unlink()
    folder.splits.path.mkdir()
    assert initial_weights.named_in(config, folder).keys() == given.keys()
    folder.generation(0).path.mkdir()
    for read in (initial_weights.named_in, initial_weights.kept):
        with pytest.raises(WorkdirError, match=r"initial_weights\.safetensors is missing: restore"):
            read(config, folder)


# In a run


@pytest.fixture(scope="module")
def first(tiny_config, make_folder):
    folder = make_folder("first") / "run"
    job.run(tiny_config("rebalance=none", generations=1), folder, pictures=False)
    return folder


def test_a_run_starts_from_another_and_needs_it_only_once(
    first, tiny_config, tmp_path, monkeypatch, capsys, caplog
):
    config = tiny_config("rebalance=crest", **{"model.init_from": str(first), "seed": 7})
    folder = tmp_path / "run"
    job.run(config, folder, pictures=False)
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("model.init_from")]
    assert line.endswith(" weights taken")
    expected = initial_weights.read(first)
    kept = initial_weights.read(RunFolder(folder).initial_weights)
    data = loading.load(config.data, RunFolder(folder).splits.path)
    state = program.build(config, data, kept).new_state(jax.random.key(3))
    started = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    average = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
    averaged = flatten_dict(average, sep="/")
    for name, value in expected.items():
        np.testing.assert_array_equal(kept[name], value)
        np.testing.assert_array_equal(started[name], value)
        np.testing.assert_array_equal(averaged[name], value)
    # Each generation starts from them, and the run can be continued without the first.
    (folder / "generation_01" / "result.json").unlink()
    (folder / "results.json").unlink()
    monkeypatch.setattr(initial_weights, "fit", None)
    config.model.init_from = "elsewhere"
    with caplog.at_level(logging.WARNING, "absl"):
        job.run(config, folder, pictures=False)
    assert f"elsewhere is not read: the run keeps the weights that it read from {first}" in (
        caplog.text
    )
    results = json.loads((folder / "results.json").read_text())
    assert len(results["generations"]) == 2


def test_training_begins_at_the_given_weights(first, tiny_config, tmp_path):
    """With a learning rate of almost nothing, the accuracy stays that of the given weights."""
    config = tiny_config(
        "rebalance=none",
        **{"model.init_from": str(first), "generations": 1, "optimizer.learning_rate": 1e-12},
    )
    config.model.batch_norm_momentum = 1.0
    job.run(config, tmp_path / "run", pictures=False)
    ours, theirs = (trained.load(folder).params for folder in (tmp_path / "run", first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_weights_that_are_not_there_are_an_error_before_the_data_is_read(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config("rebalance=crest", **{"model.init_from": str(tmp_path / "gone.npz")})
    monkeypatch.setattr(preparation, "prepare", None)
    with pytest.raises(ConfigError, match=r"model\.init_from=.*gone\.npz must be"):
        job.run(config, tmp_path / "run")
