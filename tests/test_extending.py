"""The examples of docs/extending.md as files outside the package."""

import hashlib
import importlib
import inspect
import json
import logging
import re
import sys

import jax
import numpy as np
import pytest
from conftest import REPOSITORY, load_experiment
from etils.epath import Path
from ml_collections import ConfigDict

import crest_jax
from crest_jax import (
    algorithms,
    config,
    config_help,
    contracts,
    export,
    job,
    layout,
    models,
    plugins,
    program,
    rebalancing,
    trained,
    validation,
    workdir,
)
from crest_jax.data import catalog, preparation, splits
from crest_jax.errors import ConfigError, DataError, PluginError, WorkdirError

ARGUMENTS = "method=my_losses:pi_model,rebalance=my_rebalancing:inverse_size+crest,gamma=2,beta=0.2"


@pytest.fixture(scope="module", autouse=True)
def own_files(make_folder):
    """Writes the files of the page into a folder that modules are found in."""
    folder = make_folder("own")
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    for name, content in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", page, re.DOTALL):
        (folder / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(own_files, make_folder):
    settings = load_experiment(
        "digits_lt",
        ARGUMENTS,
        **{
            "model.name": "my_nets:MyNet", "data.name": "my_data:shades", "long_tail.n_max": 150,
            "consistency": 5.0, "batch_size": 16, "steps": 40, "generations": 2, "eval_every": 20,
            "checkpoint_every": 20, "ema_decay": 0.8, "optimizer.learning_rate": 0.1,
        },
    )  # fmt: skip
    folder = make_folder("extended") / "run"
    job.run(settings, folder)
    return folder


def test_all_four_train_together_and_are_found_again(run):
    saved = crest_jax.load(run)
    kept = json.loads((run / "config.json").read_text())["config"]
    assert (kept["model"]["name"], kept["method"]) == ("my_nets:MyNet", "my_losses:pi_model")
    assert kept["consistency"] == 5.0
    assert saved.results["data"] == "my_data:shades"
    assert saved.generations == 2
    assert saved.results["accuracy"] > 60  # of four classes that are easily told apart
    assert type(saved.model().model).__name__ == "MyNet"
    shades = np.array([30, 90, 150, 210], np.uint8)[:, None, None, None]
    predicted = saved.model().predict(np.broadcast_to(shades, (4, 8, 8, 1)))
    assert predicted.logits.shape == (4, 4)
    assert (predicted.labels == np.arange(4)).sum() >= 3


def test_the_weights_are_the_rebalancings_own(own_files):
    settings = load_experiment("digits_lt", "rebalance=my_rebalancing:inverse_size+crest")
    weights = program.class_weights(settings, ("a", "b"), np.array([4, 1]))
    np.testing.assert_allclose(weights, np.array([0.5, 1]) / 0.75)
    assert settings.generations == load_experiment("digits_lt", "rebalance=crest").generations
    with pytest.raises(ConfigError, match=r"my_rebalancing:inverse_size and cb both rebalance the"):
        load_experiment("digits_lt", "rebalance=my_rebalancing:inverse_size+cb")


def test_a_model_of_ones_own_is_exported(run, tmp_path):
    model = export.export(run, tmp_path / "model")
    images = np.zeros((2, 8, 8, 1), np.uint8)
    exported = jax.export.deserialize((tmp_path / "model" / "model.jax").read_bytes())
    np.testing.assert_allclose(exported.call(images), model.predict(images).logits, atol=1e-5)
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["architecture"]["name"] == "my_nets:MyNet"


def test_a_module_that_is_missing_later_is_named(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_nets")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if "own" not in str(each)])
    importlib.invalidate_caches()
    with pytest.raises(
        ConfigError, match=r"model\.name='my_nets:MyNet': the module 'my_nets' cannot"
    ):
        trained.load(run)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nets", "must be one of a, b, or module:name of your own"),
        ("json:lodas", "json has no 'lodas'"),
        ("no_such_module:x", r"'no_such_module' cannot be imported \(ModuleNotFoundError"),
    ],
)
def test_a_name_of_nothing_is_answered(name, message):
    with pytest.raises(ConfigError, match=rf"^field='{name}'.* ?{message}"):
        plugins.find(name, {"a": 1, "b": 2}, field="field")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_package", r"No module named 'no_such_package'; own_\d+\.py, line 1\)$"),
        ("x = 1\nx = ]", r"SyntaxError: .*own_\d+\.py, line 2\)\)$"),
        ("x = {}\nx['y']", r"KeyError: 'y'; own_\d+\.py, line 2\)$"),
    ],
)
def test_an_error_within_a_module_is_no_matter_of_where_it_is(own, content, message):
    with pytest.raises(PluginError, match=rf"cannot be imported \(.*{message}"):
        plugins.find(f"{own(content)}:x", {}, field="field")


def test_a_module_that_is_not_found_is_to_be_installed():
    for name in ("no_such_module:x", "no_such_package.module:x"):
        with pytest.raises(PluginError, match=r"install it, or add its folder to PYTHONPATH$"):
            plugins.find(name, {}, field="field")


def test_an_object_is_given_by_its_name():
    class Mine:
        pass

    for field, value in {"method": Mine(), "rebalance": Mine}.items():
        with pytest.raises(ConfigError, match=f"^{field} is .*, and must be a name: 'mod"):
            crest_jax.experiment("digits_lt", **{field: value})
    settings = load_experiment("digits_lt").to_dict()
    settings["model"]["name"] = Mine
    with pytest.raises(
        ConfigError, match=r"^model\.name is a class, and must be a name: 'module:n"
    ):
        validation.validate(ConfigDict(settings))
    with pytest.raises(ConfigError, match=r"fixmatch, or module:name of your own$"):
        crest_jax.experiment("digits_lt", method="fixmtach")


def test_what_another_process_cannot_import_is_refused():
    with pytest.raises(PluginError, match="move the object into a file, and give the name of that"):
        plugins.find("__main__:Mine", {}, field="model.name")


def test_names_are_resolved_with_dots():
    assert plugins.find("json:decoder.JSONDecoder", {}, field="x") is json.JSONDecoder
    assert plugins.find("b", {"b": 3}, field="x") == 3
    assert not plugins.is_plugin("cifar10:3.0.2")  # a version of TFDS


def test_what_is_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"method=json:__name__ must be a crest_jax\.algorithms"):
        algorithms.named("json:__name__")
    with pytest.raises(ConfigError, match=r"rebalance=json:loads must be a crest_jax\.rebalancing"):
        rebalancing.named("json:loads")
    with pytest.raises(ConfigError, match=r"model\.name=json:__name__ must be a flax"):
        models.make("json:__name__")
    with pytest.raises(
        DataError,
        match=r"data\.name=builtins:dict returned a dict: it must return a crest_jax\.data",
    ):
        catalog.load("builtins:dict")
    assert algorithms.named("json:loads").hyper_parameters == {}  # a loss without any


def test_hyper_parameters_of_ones_own_are_checked():
    settings = load_experiment("digits_lt", ARGUMENTS)
    assert (settings.consistency, settings.unlabeled_ratio) == (10.0, 2)
    validation.validate(settings)
    settings.consistency = -1.0
    with pytest.raises(ConfigError, match=r"consistency=-1\.0 must be at least 0"):
        validation.validate(settings)


PARTS = {
    "acts_on=(),": "acts_on must be a tuple",
    "acts_on=('labels',),": "must be of LABELED",
    "acts_on=(LABELED,), align=max": "it has a hook for the pseudo-labels, which acts_on lacks",
    "acts_on=(PSEUDO_LABELS,), align=max": "align needs alignment_targets",
    "acts_on=(PSEUDO_LABELS,), alignment_targets=('constnat',)": "must be of none, labeled_average",
    "acts_on=(LABELED,), sampling_probabilities=max": "need needs_all_examples=True",
    "acts_on=(GENERATIONS,)": "needs sampling_rates: those of Eq. 1 are CREST.sampling_rates",
    "acts_on=(LABELED,)": "it has no hook, so it would do nothing: give it one of class_weights",
    "acts_on=(LABELED,), class_weights=3": "class_weights=3 must be a function",
    "acts_on=(LABELED,), class_weights=lambda n: n": r"must take counts, class_names, .* many pos",
    "acts_on=(LABELED,), class_weights=lambda n, names, *, b: n": "required .*argument: 'b'",
    "acts_on=(LABELED,), hyper_parameters=3": "hyper_parameters=3 must be a mapping from names",
    "acts_on=(LABELED,), hyper_parameters={'b': 0.5}": "has b=0.5, which must be a Field",
    "acts_on=(LABELED,), hyper_parameters={'b-': Field(1)}": "must be the name of an argument",
    "acts_on=(LABELED,), hyper_parameters={'x.b': Field(1), 'b': Field(1)}": "one whose name ends",
    "acts_on=(LABELED,), hyper_parameters={'b': Field(1.5, '', '[0, 1]')}": "default 1.5, which",
    "acts_on=(LABELED,), hyper_parameters={'b': Field(1.5, '', '0 to 1')}": "within='0 to 1'",
    "acts_on=(LABELED,), hyper_parameters={'b': Field(None)}": "the default None, which must be",
    "(LABELED,), {'crest.alpha': Field(1.0)}, max": "of other fields, crest.al",
    "(LABELED,), {'crest': Field(1.0)}, max": "of other fields, crest: rename",
    "(LABELED,), {'x': Field(1), 'x.b': Field(1)}, max": "fields, x.b: rename",
    "(LABELED,), {'items': Field(1.0)}, max": "of other fields, items: rename",
}


@pytest.fixture
def own(own_files):
    """Writes a module, and gives its name."""
    written = []

    def write(content):
        name = f"own_{len(list(own_files.iterdir()))}"
        (own_files / f"{name}.py").write_text(content)
        importlib.invalidate_caches()
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("part", PARTS)
def test_a_rebalancing_that_would_not_act_as_meant_is_refused(own, part):
    name = own(f"from crest_jax.rebalancing import *\nmine = Rebalancing({part})")
    with pytest.raises(PluginError, match=PARTS[part]):
        load_experiment("digits_lt", f"rebalance={name}:mine")


def test_rates_and_weights_are_checked_before_training(own):
    name = own(
        "from crest_jax.rebalancing import *\n"
        "rates = Rebalancing((GENERATIONS,), sampling_rates=lambda p, names: 3 * p / p.max())\n"
        "weights = Rebalancing((LABELED,), class_weights=lambda n, names: [1.0])"
    )
    per_class = np.array([6, 2])
    split = splits.Split(8, per_class, ())
    data = splits.Splits(split, split, split, split, ("a", "b"), (8, 8, 1))
    settings = load_experiment("digits_lt", f"rebalance={name}:rates")
    with pytest.raises(PluginError, match=r"a rate in \[0, 1\] for each of 2 classes, not \[3\.0,"):
        program.sampling_rates(settings, data)
    with pytest.raises(PluginError, match="a finite weight of at least 0 for each of 2 classes"):
        program.class_weights(
            load_experiment("digits_lt", f"rebalance={name}:weights"), ("a", "b"), per_class
        )


@pytest.mark.parametrize(
    "returned",
    ["[1.0, np.inf]", "[1.0, np.nan]", "[-1.0, 3.0]", "[1.0, 3.0]", "[1.0]", "None", "'ab'"],
)
def test_class_weights_are_finite_and_have_a_mean_of_1(own, returned):
    name = own(
        "import numpy as np\nfrom crest_jax.rebalancing import *\n"
        f"mine = Rebalancing((LABELED,), class_weights=lambda counts, names: {returned})\n"
        "nearly = Rebalancing((LABELED,), class_weights=lambda counts, names: [0.5, 1.500001])"
    )
    settings = load_experiment("digits_lt", f"rebalance={name}:mine")
    with pytest.raises(PluginError, match=rf"^rebalance={name}:mine: class_weights must return .*"):
        program.class_weights(settings, ("a", "b"), np.array([3, 1]))
    settings.rebalance = f"{name}:nearly"
    np.testing.assert_array_equal(
        program.class_weights(settings, ("a", "b"), np.array([3, 1])), [0.5, 1.500001]
    )


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1.0] * len(labels)", r"a sum of 1, not numbers of shape \(3,\) with a sum of 3$"),
        ("[2.0, -1.0, 0.0]", r"with a sum of 1, of which some are below 0$"),
        ("[1.0]", r"not numbers of shape \(1,\)"),
    ],
)
def test_probabilities_of_drawing_have_a_sum_of_1(own, returned, message):
    name = own(
        "from crest_jax.rebalancing import *\n"
        "mine = Rebalancing((LABELED,), needs_all_examples=True,\n"
        f"    sampling_probabilities=lambda labels, names: {returned})"
    )
    settings = load_experiment("digits_lt", f"rebalance={name}:mine")
    with pytest.raises(PluginError, match=message):
        program.sampling_probabilities(settings, np.array([0, 1, 1]), ("a", "b"))


def test_a_hook_that_fails_is_named_in_one_line(own):
    name = own(
        "from crest_jax.rebalancing import *\n"
        "def weights(counts, class_names): return {}['no\\nsuch']\n"
        "mine = Rebalancing((LABELED,), class_weights=weights)"
    )
    settings = load_experiment("digits_lt", f"rebalance={name}:mine")
    with pytest.raises(PluginError) as caught:
        program.class_weights(settings, ("a", "b"), np.array([3, 1]))
    said = str(caught.value)
    assert (
        said
        == rf"rebalance={name}:mine: class_weights fails (KeyError: 'no\nsuch'; {name}.py, line 2)"
    )


# Hyper-parameters of a rebalancing

TEMPERED = (
    "from crest_jax.rebalancing import *\n"
    "def weights(counts, class_names, *, power):\n"
    "    found = counts ** -power\n"
    "    return found / found.mean()\n"
    "power = Field(0.5, 'Power of the inverse size.', '[0, 1]')\n"
    "mine = Rebalancing((LABELED,), {'tempered.power': power}, class_weights=weights)\n"
)


def weights_of(settings):
    return program.class_weights(settings, ("a", "b"), np.array([4, 1])) * 1.5


def test_a_rebalancing_of_ones_own_may_have_hyper_parameters(own):
    name = own(TEMPERED)
    settings = load_experiment("digits_lt", f"rebalance={name}:mine+crest")
    assert settings.tempered.power == 0.5
    validation.validate(settings)
    np.testing.assert_allclose(weights_of(settings), [1, 2])
    settings.tempered.power = 0.0
    np.testing.assert_allclose(weights_of(settings), [1.5, 1.5])
    assert "Power of the inverse size. Must be between 0 and 1." in config_help.text(settings)
    plain = config.to_plain(settings)
    assert config.to_plain(config.completed(plain)) == plain
    settings.tempered.power = 2.0
    with pytest.raises(ConfigError, match=r"tempered\.power=2\.0 must be between 0 and 1"):
        validation.validate(settings)
    other = load_experiment("digits_lt", "rebalance=crest")
    assert "tempered" not in other
    other.rebalance = f"{name}:mine+crest"
    with pytest.raises(ConfigError, match=r"lacks tempered\.power .*--config=FILE\.py:rebalance="):
        validation.validate(other)


def test_a_rebalancing_of_the_projects_is_one_file_and_one_line(own, monkeypatch):
    """Its fields are then in every config, of earlier runs too."""
    before = config.to_plain(load_experiment("digits_lt", "rebalance=cb"))
    mine = plugins.find(f"{own(TEMPERED)}:mine", {}, field="rebalance")
    monkeypatch.setitem(rebalancing.REBALANCING, "tempered", mine)
    settings = load_experiment("digits_lt", "rebalance=tempered+crest_plus")
    validation.validate(settings)
    np.testing.assert_allclose(weights_of(settings), [1, 2])
    assert config.completed(before).tempered.power == 0.5
    assert "`tempered.power` | `0.5` | between 0 and 1 |" in config_help.markdown()
    with pytest.raises(ConfigError, match="take at most one of cb, rs, tempered"):
        load_experiment("digits_lt", "rebalance=tempered+cb")


def test_a_rebalancing_may_take_the_rates_and_fields_of_another(own):
    name = own(
        "from crest_jax.rebalancing import *\n"
        "mine = Rebalancing((GENERATIONS,), CREST.hyper_parameters,\n"
        "                   sampling_rates=CREST.sampling_rates)"
    )
    settings = load_experiment("digits_lt", f"rebalance={name}:mine", **{"crest.alpha": 1.0})
    validation.validate(settings)
    split = splits.Split(8, np.array([6, 2]), ())
    data = splits.Splits(split, split, split, split, ("a", "b"), (8, 8, 1))
    settings.class_distribution = "counts"
    np.testing.assert_allclose(program.sampling_rates(settings, data), [1 / 3, 1])


ALGORITHM_PARTS = {
    "None, {}": "loss=None must be a function",
    "loss, {'weight': 3.0}": "has weight=3.0, which must be a Field",
    "loss, {'weight': Field(1.0)}": r"by name \(got an unexpected keyword argument 'weight'",
    "loss, {}, {'learning_rate': 0.1}": "in its settings, 'learning_rate' is not a field",
    "loss, {}, {'unlabeled_ratio': 2.5}": r"unlabeled_ratio=2\.5 must be a whole number",
    "loss, {}, {'optimizer.learning_rate': -1.0}": r"rate=-1\.0 must be above 0",
    "loss, {}, 3": "settings=3 must be a mapping",
    "loss, {}, generations={'crest': 2}": r"a number of at least 2 for each of crest, crest_plus",
    "loss, {}, generations={'crest': 2, 'crest_plus': 1}": "a number of at least 2",
}


@pytest.mark.parametrize("part", ALGORITHM_PARTS)
def test_an_algorithm_that_is_not_consistent_is_refused(own, part):
    name = own(
        f"from crest_jax.algorithms import *\ndef loss(inputs): pass\nmine = Algorithm({part})"
    )
    with pytest.raises(PluginError, match=rf"^method={name}:mine: .*{ALGORITHM_PARTS[part]}"):
        load_experiment("digits_lt", f"method={name}:mine")


@pytest.mark.parametrize("returned", ["[1.0]", "[0.5, 0.9, 0.2]", "[1.5, -0.5, 0.0]"])
def test_probabilities_of_drawing_are_checked(own, returned):
    name = own(
        "from crest_jax.rebalancing import *\n"
        f"mine = Rebalancing((LABELED,), sampling_probabilities=lambda labels, names: {returned},\n"
        "                   needs_all_examples=True)"
    )
    settings = load_experiment("digits_lt", f"rebalance={name}:mine")
    labels = np.array([0, 1, 1])
    with pytest.raises(PluginError, match="a probability for each of 3 labeled examples, with a"):
        program.sampling_probabilities(settings, labels, ["a", "b"])


def test_what_needs_all_examples_is_not_streamed(own):
    name = own(
        "from crest_jax.rebalancing import *\n"
        "mine = Rebalancing((LABELED,), sampling_probabilities=max, needs_all_examples=True)"
    )
    settings = load_experiment("digits_lt", f"rebalance={name}:mine", **{"data.stream": True})
    with pytest.raises(ConfigError, match=rf"data\.stream=True must be False when .* {name}:mine"):
        validation.validate(settings)


def test_hyper_parameters_do_not_take_the_place_of_other_fields(own):
    name = own(
        "from crest_jax.algorithms import *\n"
        "mine = Algorithm(max, {'steps': Field(7), 'seed': Field(7)})"
    )
    with pytest.raises(ConfigError, match="with the names of other fields, seed, steps: rename"):
        load_experiment("digits_lt", f"method={name}:mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def make(**settings): return 3", "returns 3, not a flax"),
        (
            "def make(classes, depth): raise KeyError(depth)",
            r"with classes=10, depth=10 \(KeyError: 10; own_\d+\.py, line 1\)",
        ),
        (
            "def make(layers): return layers",
            r"called without arguments, and names none of classes, depth, .*axis_name \(TypeError",
        ),
        ("make = dict", "cannot be called with"),
    ],
)
def test_what_makes_no_model_is_refused_before_the_data_is_looked_at(own, content, message):
    name = own(content)
    settings = load_experiment("digits_lt", **{"model.name": f"{name}:make"})
    with pytest.raises(ConfigError, match=message):
        validation.validate(settings)


def test_a_model_is_checked_with_the_configs_settings(own):
    """One that can only be built with depth=50 is not refused for another depth."""
    name = own(
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    classes: int\n"
        "    depth: int\n"
        "    def __post_init__(self):\n"
        "        assert self.depth == 50, f'depth={self.depth}'\n"
        "        super().__post_init__()\n"
        "    @nn.compact\n"
        "    def __call__(self, images, *, train):\n"
        "        return nn.Dense(self.classes)(images.mean(axis=(1, 2)))"
    )
    settings = load_experiment("digits_lt", **{"model.name": f"{name}:Net", "model.depth": 50})
    validation.validate(settings)
    settings.model.depth = 10
    with pytest.raises(
        ConfigError, match=r"depth=10 \(AssertionError: depth=10; own_\d+\.py, line 6\)"
    ):
        validation.validate(settings)


# What training asks of a model and of a loss

NET = """
import flax.linen as nn
import jax.numpy as jnp
class Net(nn.Module):
    classes: int = 10
    @nn.compact
    def __call__(self, images, *, train):
        x = images.mean(axis=(1, 2))
        {first}
        return {returned}
"""
GOOD = {"first": "pass", "returned": "nn.Dense(self.classes)(x)"}
DROPOUT = "x = nn.Dropout(0.5, deterministic={deterministic}, rng_collection='{name}')(x)"
MODELS = {
    "good": ({}, None),
    "dropout": ({"first": DROPOUT.format(deterministic="not train", name="dropout")}, None),
    "of other sizes": ({"first": "assert images.shape[1] == 40"}, None),
    "head": ({"returned": "nn.Dense(7)(x)"}, r"returns float32 of shape \(2, 7\) for 2 images .*"),
    "type": ({"returned": "nn.Dense(self.classes)(x).astype('bfloat16')"}, "returns bfloat16 of"),
    "pair": (
        {"returned": "nn.Dense(3)(x), x"},
        "returns a tuple for 2 images with train=True: it must return",
    ),
    "rng": ({"first": DROPOUT.format(deterministic="not train", name="noise")}, "other random num"),
    "always": ({"first": DROPOUT.format(deterministic="False", name="dropout")}, "none with train"),
    "state": ({"first": "self.variable('seen', 'n', jnp.zeros, ())"}, "has the variables .*seen"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_training_asks_of_a_model_is_checked_before_the_data_is_prepared(own, kind):
    changes, message = MODELS[kind]
    name = own(NET.format(**{**GOOD, **changes}))
    settings = load_experiment("digits_lt", **{"model.name": f"{name}:Net"})
    validation.validate(settings)
    if message is None:
        contracts.check(settings)
        return
    with pytest.raises(PluginError, match=rf"^model\.name={name}:Net .*{message}") as caught:
        contracts.check(settings)
    assert "\n" not in str(caught.value)


def test_a_model_without_train_is_refused(own):
    name = own(NET.format(**GOOD).replace(", *, train", ""))
    settings = load_experiment("digits_lt", **{"model.name": f"{name}:Net"})
    with pytest.raises(ConfigError, match=r"__call__ must take images and train, .*'train'"):
        validation.validate(settings)


def test_a_model_is_checked_again_with_the_images_and_classes_of_the_data(own):
    changes = {"first": "assert images.shape == (2, 40, 40, 1), images.shape"}
    name = own(NET.format(**{**GOOD, **changes}))
    settings = load_experiment("digits_lt", **{"model.name": f"{name}:Net"})
    program.check_model(settings, (40, 40, 1), 4)
    with pytest.raises(
        PluginError, match=r":Net fails \(AssertionError: \(2, 8, 8, 1\); own_\d+\.py, l"
    ):
        program.check_model(settings, (8, 8, 1), 4)


LOSS = """
import jax.numpy as jnp
from crest_jax.algorithms import Loss
def loss(inputs):
    logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
    total = logits.mean()
    guesses = jnp.ones((len(inputs.unlabeled), logits.shape[1]))
    {first}
    return {returned}
"""
RESULT = "Loss(total, batch_stats, {'loss': total}, guesses.mean(0), guesses)"
LOSSES = {
    "good": (RESULT, None),
    "none": ("total, {}", r"returns a tuple: it must return a crest_jax\.algorithms\.Loss"),
    "total": (RESULT.replace("total", "logits", 1), r"with total of shape \(\d+, 10\): it must be"),
    "guesses": (RESULT.replace(", guesses)", ", total)"), "with guesses of shape"),
    "prediction": (RESULT.replace("guesses.mean(0)", "total"), r"with prediction of shape \(\)"),
    "metrics": (RESULT.replace("{'loss': total}", "total"), "with metrics=.* a dict of scalars"),
    "metric": (RESULT.replace(": total}", ": logits}"), "with the metric 'loss' of shape"),
    "statistics": (
        RESULT.replace("batch_stats", "{}"),
        "with other batch_stats than the model has, without .*BatchNorm_0/mean: they must be",
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_what_training_asks_of_a_loss_is_checked_before_the_data_is_prepared(own, kind):
    returned, message = LOSSES[kind]
    name = own(LOSS.format(first="pass", returned=returned))
    settings = load_experiment("digits_lt", f"method={name}:loss", unlabeled_ratio=1)
    if message is None:
        contracts.check(settings)
        return
    with pytest.raises(PluginError, match=rf"^method={name}:loss .*{message}") as caught:
        contracts.check(settings)
    assert "\n" not in str(caught.value)


STATEFUL = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from crest_jax.algorithms import Loss
class Net(nn.Module):
    classes: int
    @nn.compact
    def __call__(self, images, *, train):
        self.variable("batch_stats", "confidence", lambda: jnp.full((), 1 / 10))
        return nn.Dense(self.classes)(images.mean(axis=(1, 2)))
def loss(inputs):
    logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
    found = 0.9 * batch_stats["confidence"] + 0.1 * jax.nn.softmax(logits).max(axis=1).mean()
    return Loss(logits.mean(), {returned}, {"confidence": found})
"""


def test_a_loss_may_keep_state_in_batch_stats(own, tiny_config, tmp_path):
    """An initial value that is a Python number is weakly typed, unlike what a loss makes of it."""

    def settings(returned):
        name = own(STATEFUL.replace("{returned}", returned))
        fields = {"model.name": f"{name}:Net", "generations": 1, "steps_at_once": 2}
        return tiny_config(f"method={name}:loss,rebalance=none", **fields)

    good = settings("{**batch_stats, 'confidence': found}")
    contracts.check(good)
    job.run(good, tmp_path / "run")
    for returned, message in {
        "{'confidence': logits}": r"with confidence of float32\[\d+, 10\] instead of float32\[\]",
        "{**batch_stats, 'more': found}": "with more, which it lacks",
        "{}": "without confidence",
    }.items():
        with pytest.raises(PluginError, match=f"than the model has, {message}: they must be"):
            contracts.check(settings(returned))


def test_guesses_are_needed_where_they_are_refined(own):
    name = own(LOSS.format(first="pass", returned="Loss(total, batch_stats, {})"))
    settings = load_experiment("digits_lt", f"method={name}:loss,rebalance=darp")
    with pytest.raises(PluginError, match="a Loss without guesses, which rebalance=darp refines"):
        contracts.check(settings)


def test_what_a_hook_returns_to_the_step_is_checked_before_the_data_is_prepared(own):
    name = own(
        "from crest_jax.rebalancing import *\n"
        "align = Rebalancing((PSEUDO_LABELS,), alignment_targets=('constant',),\n"
        "                    align=lambda probs, target, model: probs.mean(axis=0))\n"
        "refine = Rebalancing((PSEUDO_LABELS,), needs_all_examples=True,\n"
        "                     refinement=lambda steps: steps)"
    )
    with pytest.raises(PluginError, match=r":align: align must return an array of shape \(\d+, 10"):
        contracts.check(load_experiment("digits_lt", f"rebalance={name}:align"))
    with pytest.raises(
        PluginError, match=r":refine: refinement must return .*Refinement, not 1800"
    ):
        contracts.check(load_experiment("digits_lt", f"rebalance={name}:refine"))


def test_an_error_of_a_plug_in_is_left_to_the_shapes_of_the_data(own, tmp_path, tiny_config):
    """It may come of the images that are tried before: a loss may know the size of its own."""
    name = own(LOSS.format(first="raise ValueError('odd\\nsize')", returned=RESULT))
    settings = tiny_config(f"method={name}:loss,rebalance=none", generations=1)
    contracts.check(settings)
    with pytest.raises(PluginError) as caught:
        job.run(settings, tmp_path / "run")
    place = f"{name}.py, line 8"
    assert str(caught.value) == f"method={name}:loss fails (ValueError: odd size; {place})"


def test_a_violation_ends_a_run_before_it_has_a_folder(own, tmp_path):
    name = own(LOSS.format(first="pass", returned="total"))
    settings = load_experiment("digits_lt", f"method={name}:loss")
    with pytest.raises(PluginError, match="it must return a"):
        job.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_of_ones_own_says_what_it_is_tested_on(own):
    name = own(
        "import crest_jax, numpy as np\n"
        "images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2\n"
        "held_out = lambda: crest_jax.arrays(images, labels)\n"
        "given = lambda: crest_jax.arrays(images, labels, test=(images[:3], labels[:3]))\n"
        "divided = lambda: crest_jax.arrays(images, labels, unlabeled=images)\n"
        "def failing(): raise KeyError('x')"
    )
    assert len(catalog.load(f"{name}:held_out", test_split="").labels("test")) == 4
    assert len(catalog.load(f"{name}:given").labels("test")) == 3
    with pytest.raises(DataError, match=r"set --config\.data\.test_split=$"):
        catalog.load(f"{name}:held_out")
    with pytest.raises(DataError, match=r"set --config\.data\.test_split=test"):
        catalog.load(f"{name}:given", test_split="", test_fraction=0.2)
    with pytest.raises(DataError, match="failing fails: KeyError"):
        catalog.load(f"{name}:failing")


def test_unlabeled_images_of_a_named_data_set_are_given_from_python(own, tmp_path):
    name = own(
        "import crest_jax, numpy as np\n"
        "images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2\n"
        "test = images[:3], labels[:3]\n"
        "mine = lambda: crest_jax.arrays(images, labels, unlabeled=images, test=test)"
    )
    settings = load_experiment("digits_lt", **{"data.name": f"{name}:mine"})
    with pytest.raises(DataError, match="has unlabeled images of its own: give it to"):
        preparation.prepare(settings, tmp_path / "splits", tmp_path / "unreadable.csv")


def test_a_missing_loss_is_no_damaged_run(tmp_path):
    settings = config.to_plain(load_experiment("digits_lt")) | {"method": "gone:loss"}
    content = {"format": layout.FORMAT, "config": settings}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(PluginError, match="the module 'gone' cannot be imported"):
        workdir.read_config(Path(tmp_path))


# A file that changes while a run is stopped


def test_a_changed_file_is_a_warning_that_names_it(own, own_files, tmp_path, caplog):
    name = own("loss = max")
    settings = load_experiment("digits_lt", f"method={name}:loss")
    folder = tmp_path / "run"

    def claim():
        caplog.clear()
        sys.modules.pop(name, None)  # as in another process
        with caplog.at_level(logging.WARNING, "absl"), workdir.claim(folder, settings):
            return [record.getMessage() for record in caplog.records]

    assert not claim()
    file = own_files / f"{name}.py"
    file.write_text("loss = min")  # nothing was made with the first one yet
    assert not claim()
    (folder / "splits").mkdir()
    assert not claim()
    file.write_text("loss = min  # changed")
    (message,) = claim()
    assert message.startswith(f"{file} (method={name}:loss) has changed since {folder} began")
    assert "no generation is finished; splits and checkpoints are kept" in message
    (folder / "generation_00").mkdir()
    (folder / "generation_00" / "result.json").write_text("{}")
    (message,) = claim()
    assert "began: what the run has finished is kept" in message
    caplog.clear()
    del sys.modules[name]
    with caplog.at_level(logging.WARNING, "absl"):
        workdir.check(folder, settings)
    assert len(caplog.records) == 1
    (folder / "plugins.json").write_text("{")
    (message,) = claim()
    assert message.startswith(f"{folder / 'plugins.json'} is damaged")


def test_a_changed_model_is_a_warning_where_a_run_is_read(run, own_files, monkeypatch, caplog):
    file = own_files / "my_nets.py"
    content = file.read_text()

    def load(changed):
        caplog.clear()
        monkeypatch.delitem(sys.modules, "my_nets")
        file.write_text(changed)
        with caplog.at_level(logging.WARNING, "absl"):
            trained.load(run)
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if "has changed" in message]

    try:
        (message,) = load(f"{content}# changed\n")
        assert message.startswith(f"{file} (model.name=my_nets:MyNet) has changed since {run} beg")
        assert not load(f"{content}# changed\n")  # one warning is enough
        with pytest.raises(
            WorkdirError, match=r"restore .*my_nets\.py .* has changed since the run"
        ):
            load(content.replace("Conv(8", "Conv(16"))
    finally:
        assert not load(content)


@pytest.mark.parametrize("imported_before", [False, True])
def test_code_that_is_no_longer_on_disk_is_a_warning(
    own, own_files, tmp_path, caplog, imported_before
):
    """In a notebook, a module that was imported stays as it was."""
    before, after = (f"def loss(inputs): return {number}" for number in (1, 2222))
    name = own(before)
    file = own_files / f"{name}.py"
    if imported_before:
        importlib.import_module(name)
        file.write_text(after)
    settings = load_experiment("digits_lt", f"method={name}:loss")
    file.write_text(after)

    def claim():
        caplog.clear()
        with caplog.at_level(logging.WARNING, "absl"), workdir.claim(tmp_path, settings):
            kept = tmp_path / "plugins.json"
            digests = json.loads(kept.read_text())["sha256"] if kept.exists() else {}
            return digests.get(name), [record.getMessage() for record in caplog.records]

    digest, (message,) = claim()
    assert message.startswith(f"{file} (method={name}:loss) has changed since it was imported")
    assert "restart Python (or the notebook's kernel)" in message
    known = hashlib.sha256(before.encode()).hexdigest()
    assert digest == (None if imported_before else known)
    importlib.reload(sys.modules[name])
    assert claim() == (hashlib.sha256(after.encode()).hexdigest(), [])


def test_a_module_that_is_imported_already_is_as_on_disk(own_files):
    importlib.import_module("my_nets")
    settings = load_experiment("digits_lt", **{"model.name": "my_nets:MyNet"})
    validation.validate(settings)
    assert not plugins.stale(settings)


def test_a_digest_is_kept_of_each_file_that_a_config_names(run, own_files):
    modules = ("my_data", "my_losses", "my_nets", "my_rebalancing")
    expected = {
        module: hashlib.sha256((own_files / f"{module}.py").read_bytes()).hexdigest()
        for module in modules
    }
    assert json.loads((run / "plugins.json").read_text())["sha256"] == expected


def test_a_run_of_the_projects_own_objects_keeps_no_digests(tmp_path):
    settings = load_experiment("digits_lt", **{"data.name": "cifar10:3.0.2"})
    with workdir.claim(tmp_path, settings):
        assert not (tmp_path / "plugins.json").exists()


@pytest.mark.parametrize(
    "kind",
    [
        algorithms.Algorithm, algorithms.Field, algorithms.Loss, algorithms.StepInputs,
        rebalancing.Rebalancing,
    ],
)  # fmt: skip
def test_help_says_what_each_field_means(kind):
    described = re.findall(r"\n  (\w+): ", inspect.cleandoc(kind.__doc__).partition("Attrib")[2])
    assert tuple(described) == kind._fields


# Settings of experiments


def test_a_loss_has_mnist_lts_ratio_unless_it_declares_its_own(own):
    def ratio(method):
        return load_experiment("mnist_lt", f"method={method}").unlabeled_ratio

    name = own("def loss(inputs): pass")
    assert ratio(f"{name}:loss") == ratio("fixmatch") == 4
    assert ratio("my_losses:pi_model") == 2
    assert [ratio(name) for name in ("supervised", "mixmatch")] == [0, 1]
