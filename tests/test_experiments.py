"""Messages about a --config that is no experiment, and about a field that it does not have."""

import pathlib

import pytest
from conftest import REPOSITORY

from crest_jax import experiments
from crest_jax.errors import ConfigError

DIGITS = f"--config={REPOSITORY / 'experiments' / 'digits_lt.py'}"
FILES = {
    "def get_config() return 3": "SyntaxError: expected ':'",
    "import json\njson.nothing": "fails at line 2: AttributeError",
    "def get_config():\n    return open('/no/such/file')": "fails at line 2: FileNotFoundError",
    "def get_config():\n    return int('x')": "fails at line 2: ValueError",
    "def get_config():\n    return get_config()": "fails at line 2: RecursionError",
    "def get_config(a, b):\n    return 3": "TypeError: get_config() missing 2 required",
    "\0": "SyntaxError: source code string cannot contain null bytes",
}


def message(*words):
    with pytest.raises(ConfigError) as caught:
        experiments.read(["main", *words])
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("content", FILES)
def test_what_an_experiments_file_raises_is_said_in_a_line(tmp_path, content):
    path = tmp_path / "mine.py"
    path.write_text(content)
    said = message(f"--config={path}")
    assert FILES[content] in said
    assert str(path) in said


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.crest.alfa=1", "crest has alpha, rates, t_min; did you mean crest.alpha?"),
        ("--config.alpha=1", "did you mean crest.alpha?"),
        ("--config.stepz=3", "did you mean steps?"),
        ("-config.stepz=3", "did you mean steps?"),
        ("--config.optimizer.lerning_rate=3", "did you mean optimizer.learning_rate?"),
        ("--config.optimizer.drops[0]=3", "did you mean optimizer.drops?"),
        ("--config.steps.most=3", "steps is 600, and has no fields"),
        ("--config.=3", "there is no such field"),
        ("--config.mixup_alpha=1", "mixup_alpha is of method=mixmatch only"),
        ("--config.crest=1", "set one of its fields, alpha, rates, t_min"),
        ("--config.steps=many", "it must be a whole number"),
        ("--config.steps=1.5", "it must be a whole number"),
        ("--config.data.stream=maybe", "it must be True or False"),
        ("--config.crest.alpha=x", "it must be a number"),
    ],
)
def test_a_field_that_cannot_be_set_is_named_with_what_can(flag, expected):
    said = message(DIGITS, "--config.seed=3", flag)
    assert said.startswith(f"{flag}: ")
    assert expected in said


def test_a_hyper_parameter_of_other_methods_says_whose_it_is():
    said = message(f"{DIGITS}:method=mixmatch", "--config.threshold=0.9")
    assert said.startswith("--config.threshold=0.9: threshold is of method=")
    assert "fixmatch" in said.split(";")[0]
    assert "mixmatch" not in said.split(";")[0]


def test_an_argument_is_asked_for_by_its_right_name():
    assert message(f"{DIGITS}:gama=3").endswith("did you mean gamma?")


def test_an_unknown_flag_is_named():
    assert message(DIGITS, "--hots=3") == "Unknown command line flag 'hots'"


@pytest.mark.parametrize("given", ["digits_lt", "digits_lt.py", "experiments/digits_lt.py"])
def test_the_projects_experiments_are_found_from_any_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ([f"--config={given}:gamma=3"], ["--config", f"{given}:gamma=3"]):
        resolved = experiments.with_paths(["main", *words])
        assert pathlib.Path(resolved[-1].removeprefix("--config=").partition(":")[0]).is_absolute()
        assert experiments.read(resolved).long_tail.gamma == 3
    assert experiments.experiment(given, gamma=4, rebalance="crest").long_tail.gamma == 4
    assert "--config is missing" in message("--config.steps=3")


def test_arguments_are_given_by_name_or_after_the_colon_and_not_both():
    assert experiments.experiment("digits_lt:gamma=3").long_tail.gamma == 3
    assert experiments.experiment("digits_lt", gamma_u=None).long_tail.gamma == 10
    with pytest.raises(ConfigError, match="has arguments after a colon: give all of them by name"):
        experiments.experiment("digits_lt:gamma=3", beta=0.2)


def test_a_file_of_ones_own_goes_before_the_projects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_lt.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arguments=None): return ConfigDict({'given': arguments or ''})"
    )
    assert experiments.experiment("digits_lt.py", a=1, b="c").given == "a=1,b=c"
    assert "given" not in experiments.experiment("digits_lt")  # which is no file here
    with pytest.raises(ConfigError, match="is not a file in"):
        experiments.experiment("elsewhere/digits_lt.py")


def test_in_the_source_tree_it_is_named_as_the_readme_does(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert message("--config.steps=3").endswith("try --config=experiments/digits_lt.py")


@pytest.mark.parametrize("given", ["experiments/digit_lt.py", "experiments/", "", "/no/where.py"])
def test_what_is_no_file_is_answered_with_all_experiments(monkeypatch, given):
    monkeypatch.chdir(REPOSITORY)
    said = message(f"--config={given}")
    assert f"--config={given} " in said
    assert all(path.name in said for path in (REPOSITORY / "experiments").glob("*.py"))
    assert ("did you mean digits_lt.py?" in said) == ("digit" in given)
    assert ("is a folder" in said) == given.endswith("/")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(): return 3", "get_config must return a ConfigDict, not 3"),
        ("def get_config(): return 1 / 0", "fails at line 1: ZeroDivisionError"),
    ],
)
def test_from_python_a_file_that_makes_no_config_is_one_error(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        experiments.experiment(tmp_path / "mine.py")


def test_the_home_is_found_in_the_name_of_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["--config=~/mine.py:a=~/b"], ["--config", "~/mine.py:a=~/b"]):
        given = experiments.with_paths(["main", *words, "--config.data.labeled=~/c"])
        assert f"{tmp_path}/mine.py:a=~/b" in given[-2]
        assert given[-1] == "--config.data.labeled=~/c"  # which is expanded where it is used
