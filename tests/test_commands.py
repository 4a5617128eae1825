import importlib
import subprocess
import sys

import pytest

from crest_jax import commands, main


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_is_there(name):
    module = importlib.import_module(f"crest_jax.{commands.COMMANDS[name]}")
    assert callable(module.console if name == "train" else module.main)


def test_a_command_gets_what_follows_its_name(monkeypatch, capsys, tmp_path):
    words = ["crest-jax", "archive", f"--output={tmp_path}/kept", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 1
    assert f"{tmp_path}/run is not a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"), [([], "no command is given"), (["trian"], "'trian' is not a command")]
)
def test_what_is_no_command_is_answered_with_those_there_are(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["crest-jax", *words])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 64
    said = capsys.readouterr().err
    assert message in said
    assert "crest-jax {train,predict," in said


def test_help_names_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crest-jax", "--help"])
    commands.main()
    assert "usage: crest-jax {train,predict," in capsys.readouterr().out


@pytest.mark.parametrize("module", ["paper.__main__", "report.comparison"])
def test_help_has_the_command_that_was_given_and_the_modules_words(module):
    name = f"crest_jax.{module.removesuffix('.__main__')}"
    done = subprocess.run([sys.executable, "-m", name, "-h"], capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: python -m {name} [-h]")
    assert importlib.import_module(f"crest_jax.{module}").__doc__.strip() in done.stdout


def test_help_on_training_has_its_words_and_flags():
    code = "import sys; from crest_jax import commands; sys.argv[0] = 'crest-jax'; commands.main()"
    done = subprocess.run([sys.executable, "-c", code, "train", "--help"], capture_output=True)
    said = done.stdout.decode()
    assert main.__doc__.strip() in said
    assert "--[no]dry_run: Check everything" in said
    assert "--config: An experiment's file" in said
