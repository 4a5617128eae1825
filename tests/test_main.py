import logging
import os
import re
import signal

import pytest
from etils.epath import Path
from hypothesis import given
from hypothesis import strategies as st

from crest_jax import hosts, main, preemption
from crest_jax.errors import Preempted
from crest_jax.main import default_workdir


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--config=experiments/digits_lt.py:gama=3"], os.EX_USAGE, "'gama=3' is not key=value"),
        (["--config=experiments/digits_lt.py:gamma=0.5"], os.EX_USAGE, "gamma=0.5 must be at"),
        (["--config=experiments/digits_lt.py", "--workdir=http://host/run"], os.EX_USAGE,
         "--workdir=http://host/run is neither on a disk nor in a bucket"),
        (["--config=experiments/digits_lt.py", "--config.stps=3"], os.EX_USAGE, "mean steps?"),
        (["--config=experiments/nofile.py", "--config.steps=3"], os.EX_USAGE, "nofile.py"),
        (["--config=experiments/nofile.py"], os.EX_USAGE, "nofile.py is not a file"),
        (["--config=experiments/digits_lt.py", "--config.steps=many"], os.EX_USAGE, "steps=many"),
        (["--config=experiments/digits_lt.py", "--workdri=run"], os.EX_USAGE, "workdir"),
        (["--config=experiments/digits_lt.py", "--workdir=~no-one/run"], os.EX_USAGE,
         "--workdir=~no-one/run: there is no user no-one"),
        ([], os.EX_USAGE, "--config is missing"),
        (["--config=experiments/digits_lt.py", "--workdir=setup.py"], 1, "cannot be written"),
        (
            ["--config=experiments/digits_lt.py", "--workdir=setup.py", "--dry_run"],
            1,
            "cannot be written",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_readable_error(command_line, arguments, status, message):
    output, errors = (process := command_line(*arguments)).communicate(timeout=120)
    assert process.returncode == status
    assert message in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors
    assert not output


@pytest.mark.parametrize("library", ["jax/_src/dispatch.py", "orbax/checkpoint/handler.py"])
def test_the_news_of_libraries_is_not_shown_wherever_they_are(library):
    """One place is `.venv` in a clone whose folder has the name of the package."""
    packages = "/home/me/crest_jax/.venv/lib/python3.11/site-packages"

    def is_shown(path, level):
        return main._is_wanted(logging.LogRecord("absl", level, str(path), 1, "news", (), None))

    assert not is_shown(f"{packages}/{library}", logging.INFO)
    assert is_shown(f"{packages}/{library}", logging.WARNING)
    assert is_shown(f"{packages}/clu/metric_writers/logging_writer.py", logging.INFO)
    assert is_shown(Path(main.__file__).parent / "data" / "pictures.py", logging.INFO)


def test_the_default_workdir_is_named_after_the_experiment_and_its_arguments():
    assert default_workdir("experiments/digits_lt.py") == Path("runs/digits_lt")
    assert default_workdir("experiments/cifar10_lt.py:gamma=50,rebalance=crest") == Path(
        "runs/cifar10_lt-gamma=50-rebalance=crest"
    )
    assert default_workdir("experiments/digits_lt.py:t=1e-05,method=fixmatch") == Path(
        "runs/digits_lt-t=1e-05-method=fixmatch"
    )


ARGUMENTS = (
    "labeled=data/v1/labeled", "labeled=data_v1/labeled", "labeled=data_v1_labeled",
    "labeled=data/v1_labeled", "labeled=a-fold=1", "labeled=a,fold=1", "labeled=a/", "labeled=a",
    "labeled=gs://bucket/a", "labeled=gs:/bucket/a", "labeled=ph [1]", "labeled=ph {1}", "fold=1,",
    "fold=1", "labeled=\u00e9", "labeled=e\u0301", "labeled=\udcff", f"labeled={'x' * 300}",
    f"labeled={'x' * 301}", "labeled=..",
)  # fmt: skip


def test_other_arguments_have_another_default_workdir():
    """It is one plain name within `runs`, even if there are paths among the arguments."""
    folders = {default_workdir(f"experiments/image_folder.py:{text}") for text in ARGUMENTS}
    assert len(folders) == len(ARGUMENTS)
    for folder in folders:
        assert folder.parent == Path("runs")
        assert re.fullmatch(r"image_folder-(labeled|fold)[\w.=-]+", folder.name, re.ASCII)
        assert len(folder.name) <= 255
    (folder,) = {default_workdir("experiments/image_folder.py:labeled=../my/photos,fold=1")}
    assert folder.name.startswith("image_folder-labeled=.._my_photos-fold=1-")


@given(st.text(alphabet="ab=-_,/ .", max_size=6), st.text(alphabet="ab=-_,/ .", max_size=6))
def test_default_workdirs_are_the_same_for_the_same_arguments_only(one, other):
    folders = [default_workdir(f"experiments/a.py:{text}") for text in (one, other)]
    assert (folders[0] == folders[1]) == (one == other)


def deferred(then=lambda: None):
    """Send SIGTERM where it is deferred, as within the step loop."""
    with preemption.deferred_sigterm() as preempted:
        assert not preempted()
        signal.raise_signal(signal.SIGTERM)
        assert preempted()
        then()


def test_sigterm_is_raised_at_once_or_on_leaving():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.raised_on_sigterm():
        with pytest.raises(Preempted, match="run the same command again"):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted):
            deferred()
        with pytest.raises(ZeroDivisionError):  # an error of its own is not replaced
            deferred(then=lambda: 1 // 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_that_is_closed_counts_as_sigterm_unless_it_is_to_be_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under `nohup`
    try:
        with pytest.raises(Preempted), preemption.raised_on_sigterm():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
        with preemption.raised_on_sigterm():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_is_no_error_that_others_handle():
    """A library may handle errors to try something else, or a user's loop over several runs."""

    def handled():
        with preemption.raised_on_sigterm():
            try:
                hosts.on_first(signal.raise_signal, signal.SIGTERM)
            except Exception:
                return

    with pytest.raises(Preempted):
        handled()


def test_what_sigterm_makes_of_others_work_is_still_sigterm():
    """A library that is stopped within may raise an error of its own."""

    def stopped_within_a_library():
        with preemption.raised_on_sigterm():
            try:
                signal.raise_signal(signal.SIGTERM)
            except Preempted as error:
                raise SystemError("a result with an exception set") from error

    with pytest.raises(Preempted):
        stopped_within_a_library()
