"""The scripts of cloud_tpu/, with stand-ins for `gcloud`, `docker` and `curl` that log calls."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "cloud_tpu"
FLAGS = {
    "name": "table-4-cell-3",
    "project": "my-project",
    "zone": "us-west4-a",
    "accelerator": "v5litepod-16",
    "runtime": "v2-alpha-tpuv5-lite",
    "image": "us-docker.pkg.dev/my-project/images/crest_jax:1",
    "bucket": "gs://my-bucket",
}
COMMAND = ["crest_jax.main", "--config=experiments/imagenet127.py", "--workdir=gs://my-bucket/run"]
IN_PLACE = ["--project=my-project", "--zone=us-west4-a"]

# Words end with 037, calls with 036: neither is in any argument.
RECORD = """#!/usr/bin/env bash
{ printf '%s\\037' "$(basename "$0")" "$@"; printf '\\036'; } >>"$STAND_IN/calls"
"""
GCLOUD = """
case "$*" in
  *queued-resources\\ list*) cat "$STAND_IN/queued"; exit "${LIST_STATUS:-0}" ;;
  *queued-resources\\ create*)
    for word in "$@"; do
      case $word in
        --metadata-from-file=startup-script=*) cp "${word#*=*=}" "$STAND_IN/startup.sh" ;;
      esac
    done
    exit "${CREATE_STATUS:-0}" ;;
  *storage\\ cp*) cat >>"$STAND_IN/uploaded" ;;
esac
"""
# The exit statuses of containers, one a line; 125 is that of a container that docker cannot start.
DOCKER = """
next() { head -n 1 "$STAND_IN/statuses"; sed -i 1d "$STAND_IN/statuses"; }
case $1 in
  run) if [[ $(head -n 1 "$STAND_IN/statuses") == 125 ]]; then next >&2; exit 125; fi ;;
  logs) echo "what the run says" ;;
  wait) next ;;
esac
"""


class Cloud:
    """The stand-ins, in a folder that is first on the PATH."""

    def __init__(self, folder):
        self.folder = folder
        for name, does in {"gcloud": GCLOUD, "docker": DOCKER, "curl": 'echo "$HOST"\n'}.items():
            stand_in = folder / name
            stand_in.write_text(RECORD + does)
            stand_in.chmod(0o755)
        self.queued()

    def queued(self, **states):
        lines = "".join(f"{name.replace('_', '-')}\t{state}\n" for name, state in states.items())
        (self.folder / "queued").write_text(lines)

    def run(self, *words, **environment):
        """Runs a script; gives its exit status, what it printed, and the calls it has made."""
        (self.folder / "calls").write_text("")
        done = subprocess.run(
            ["bash", *map(str, words)],
            env={
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "STAND_IN": str(self.folder),
                **environment,
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        calls = (self.folder / "calls").read_text().split("\036")[:-1]
        return done.returncode, done.stdout, [call.split("\037")[:-1] for call in calls]

    def submit(self, *words, command=COMMAND, without=(), **environment):
        flags = [f"--{name}={value}" for name, value in FLAGS.items() if name not in without]
        return self.run(SCRIPTS / "submit.sh", *flags, *words, "--", *command, **environment)

    def run_on_host(self, *statuses, host=0):
        """Run the last submitted script on a host whose containers end with these statuses."""
        (self.folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        return self.run(self.folder / "startup.sh", HOST=str(host), pause="0")


@pytest.fixture
def cloud(tmp_path):
    return Cloud(Path(tmp_path))


def verbs(calls):
    """Return the requests about queued resources."""
    return [call[4] for call in calls if call[:4] == ["gcloud", "compute", "tpus",
                                                      "queued-resources"]]  # fmt: skip


def containers(calls):
    return [call for call in calls if call[:2] == ["docker", "run"]]


def test_scripts_have_no_lint():
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) == 3
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for script in scripts:
        lines = script.read_text().splitlines()
        assert max(map(len, lines)) <= 100
        # What a user starts can be started.
        assert lines[0].startswith("#!") == bool(script.stat().st_mode & stat.S_IXUSR)


# Submitting


def test_one_slice_is_asked_for_whatever_its_number_of_hosts(cloud):
    status, printed, calls = cloud.submit()
    assert status == 0, printed
    assert verbs(calls) == ["list", "create"]
    script = next(word for word in calls[1] if word.startswith("--metadata-from-file="))
    assert calls[1] == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "table-4-cell-3",
        "--node-id=table-4-cell-3", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", script, *IN_PLACE,
    ]  # fmt: skip
    assert not Path(script.rpartition("=")[2]).exists()


def test_spot_and_the_account_are_asked_for(cloud):
    _, _, calls = cloud.submit("--spot", "--service-account=tpu@my-project.iam")
    assert calls[1][-4:] == ["--spot", "--service-account=tpu@my-project.iam", *IN_PLACE]


def test_the_environment_stands_for_flags(cloud):
    elsewhere = {"ZONE": "us-east1-c", "ACCELERATOR": "v6e-32", "RUNTIME": "v2-alpha-tpuv6e"}
    without = ["zone", "accelerator", "runtime"]
    status, printed, calls = cloud.submit(without=without, **elsewhere)
    assert status == 0, printed
    assert {"--zone=us-east1-c", "--accelerator-type=v6e-32"} < set(calls[1])
    _, _, calls = cloud.submit(**elsewhere)  # and flags overrule it
    assert "--zone=us-west4-a" in calls[1]


@pytest.mark.parametrize(
    ("state", "expected", "status", "says"),
    [
        ("SUSPENDED", ["list", "delete", "create"], 0, "is SUSPENDED: deleting it"),
        ("FAILED", ["list", "delete", "create"], 0, "is FAILED: deleting it"),
        ("ACTIVE", ["list"], 0, "is ACTIVE: left alone"),
        ("PROVISIONING", ["list"], 0, "is PROVISIONING: left alone"),
        ("WAITING_FOR_RESOURCES", ["list"], 0, "is WAITING_FOR_RESOURCES: left alone"),
        ("SUSPENDING", ["list"], 75, "is SUSPENDING: run the same command again in"),
        ("DELETING", ["list"], 75, "is DELETING: run the same command again in"),
    ],
)
def test_the_same_command_again(cloud, state, expected, status, says):
    # Others' names, which begin with this one or end with it, do not matter.
    cloud.queued(table_4_cell_3=state, table_4_cell_30="FAILED", a_table_4_cell_3="FAILED")
    ended, printed, calls = cloud.submit()
    assert (ended, verbs(calls)) == (status, expected)
    assert f"table-4-cell-3 {says}" in printed
    if "delete" in expected:
        assert calls[1][5:] == ["table-4-cell-3", "--force", "--quiet", *IN_PLACE]


def test_an_error_of_gcloud_is_the_commands(cloud):
    status, _, calls = cloud.submit(LIST_STATUS="3")
    assert (status, verbs(calls)) == (3, ["list"])
    status, printed, _ = cloud.submit(CREATE_STATUS="4")
    assert status == 4
    assert "submitted" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name=Table_4"], "--name=Table_4 must be at most 63 lower-case letters"),
        ([f"--name={'a' * 64}"], "must be at most 63 lower-case letters"),
        (["--project="], "--project is missing; give the id of a project"),
        (["--zone=us-west4"], "--zone=us-west4 must be a zone that has such TPUs, as us-west4-a"),
        (["--accelerator=v5e"], "--accelerator=v5e must be a kind of TPU and its size"),
        (["--runtime="], "--runtime is missing; give what goes with the accelerator: v2-alpha"),
        (["--image=crest_jax"], "--image=crest_jax must be an image in Artifact Registry with its"),
        (["--image=us-docker.pkg.dev/a/b/c"], "with its tag"),
        (["--bucket=my-bucket"], "--bucket=my-bucket must be a bucket, or a folder in one"),
        (["--spto"], "'--spto' is no --flag=value of submit.sh"),
        (["crest_jax.main"], "'crest_jax.main' is no --flag=value of submit.sh; the command to"),
    ],
)
def test_a_mistake_is_one_readable_error(cloud, words, message):
    status, printed, calls = cloud.submit(*words)
    assert (status, calls) == (64, [])
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "'' cannot run on a slice"),
        (["python", "-m", "crest_jax.main"], "'python' cannot run on a slice; after -- goes"),
        (["crest_jax.main"], "crest_jax.main needs --workdir=gs://"),
        (["crest_jax.main", "--workdir=runs/a"], "crest_jax.main needs --workdir=gs://"),
        (["crest_jax.paper", "--run", "--table=4"], "crest_jax.paper needs --runs=gs://"),
        (["crest_jax.paper", "--list", "--runs=gs://b/runs"], "crest_jax.paper needs --run here"),
    ],
)
def test_a_command_that_cannot_run_on_several_hosts_is_refused(cloud, command, message):
    status, printed, calls = cloud.submit(command=command)
    assert (status, calls) == (64, [])
    assert printed.startswith(f"error: {message}")


# On the hosts


AWKWARD = [
    "--config.a=two words",
    "--config.b=(1, 2)",
    "--config.c=x:y,z=$HOME;`ls`",
    "it's",
    '"β"',
]


def test_every_host_runs_the_command_that_was_submitted_to_the_letter(cloud):
    cloud.submit(command=[*COMMAND, *AWKWARD, ""])
    for host in range(4):
        status, printed, calls = cloud.run_on_host(0, host=host)
        assert status == 0
        (container,) = containers(calls)
        at = container.index(FLAGS["image"])
        assert container[at + 1 :] == [
            "crest_jax.main", "--find_hosts", "--join_timeout=900", *COMMAND[1:], *AWKWARD, "",
        ]  # fmt: skip
        assert {"--net=host", "--privileged", "--stop-timeout=120"} < set(container[:at])
        assert "--env=JAX_COMPILATION_CACHE_DIR=gs://my-bucket/compiled" in container
        assert ["gcloud", "auth", "configure-docker", "us-docker.pkg.dev", "--quiet"] in calls
        # What it says is on the console and in the bucket.
        assert "what the run says" in printed
        upload = next(call for call in calls if call[1:3] == ["storage", "cp"])
        assert re.fullmatch(
            rf"gs://my-bucket/logs/table-4-cell-3/\d+T\d+Z-host-{host}\.log", upload[4]
        )
    assert (cloud.folder / "uploaded").read_text() == "what the run says\n" * 4


@pytest.mark.parametrize(
    ("given", "flags"),
    [([], []), (["--", "--join_timeout=60", "a b"], ["--join_timeout=60", "a b"])],
)
def test_a_run_of_the_paper_is_told_to_find_its_hosts(cloud, given, flags):
    command = ["crest_jax.paper", "--table=4", "--run", "--cell=3", "--runs=gs://my-bucket/runs"]
    cloud.submit(command=[*command, *given])
    _, _, calls = cloud.run_on_host(0)
    (container,) = containers(calls)
    at = container.index(FLAGS["image"]) + 1
    assert container[at:] == [*command, "--", "--find_hosts", "--join_timeout=900", *flags]


@pytest.mark.parametrize(
    ("statuses", "attempts"),
    [
        ([0], 1),
        ([75, 0], 2),  # stopped by SIGTERM, and saved
        ([134, 137, 75, 0], 4),  # another host died; this one did; and then it was stopped
        ([125, 0], 2),  # docker could not pull the image
        ([1], 1),  # what a user can mend, as 64
        ([64], 1),
        ([75, 1], 2),
        ([134] * 30, 20),
    ],
)
def test_a_run_is_started_again_where_that_helps(cloud, statuses, attempts):
    cloud.submit()
    status, printed, calls = cloud.run_on_host(*statuses)
    assert len(containers(calls)) == attempts
    assert status == statuses[attempts - 1]
    assert f"exit status {status}" in printed
    # Whatever the end, no more is paid for.
    assert calls[-1][3:] == [
        "queued-resources", "delete", "table-4-cell-3", *IN_PLACE, "--force", "--quiet", "--async",
    ]  # fmt: skip
    assert verbs(calls) == ["delete"]


def test_the_first_host_deletes_the_slice_and_any_that_gives_up(cloud):
    cloud.submit()
    for host in (1, ""):  # the latter where the metadata server does not say
        _, _, calls = cloud.run_on_host(0, host=host)
        assert verbs(calls) == []
        _, _, calls = cloud.run_on_host(1, host=host)
        assert verbs(calls) == ["delete"]
    cloud.submit("--keep")
    for status in (0, 1):
        _, _, calls = cloud.run_on_host(status)
        assert verbs(calls) == []


# Tables


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """The output of `crest_jax.paper --list` for Table 4, where JAX can use no device.

    On a TPU the program that starts a run must leave the devices to it.
    """
    runs = tmp_path_factory.mktemp("runs")
    damaged = "imagenet127-method=fixmatch-rebalance=none-beta=0.1-fold=0"
    (runs / "full" / damaged).mkdir(parents=True)
    (runs / "full" / damaged / "results.json").write_text("{}")  # for its config to be made
    done = subprocess.run(
        [sys.executable, "-m", "crest_jax.paper", "--table=4", "--list", "--unfinished",
         f"--runs={runs}"],
        cwd=REPOSITORY, env=os.environ | {"JAX_PLATFORMS": "none"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def submit_table(cloud, listing):
    """Submits a table of which cells 1 and 4 are finished."""
    lines = listing.splitlines(keepends=True)
    (cloud.folder / "listing").write_text("".join(lines[at] for at in (1, 2, 4, 5)))
    python = cloud.folder / "python"
    python.write_text(f'{RECORD}cat "$STAND_IN/listing"\n')
    python.chmod(0o755)
    flags = [f"--{name}={value}" for name, value in FLAGS.items() if name != "name"]

    def submit(*words, paper=("--table=4", "--runs=gs://my-bucket/runs"), **environment):
        script = SCRIPTS / "submit_table.sh"
        return cloud.run(script, *flags, *words, "--", *paper, **environment)

    return submit


def test_one_job_for_each_cell_that_is_left(cloud, submit_table):
    cloud.queued(table_4_cell_2="ACTIVE", table_4_cell_5="SUSPENDED")
    field = "--config.data.data_dir=gs://my data"
    paper = ["--table=4", "--runs=gs://my-bucket/runs", field]
    status, printed, calls = submit_table("--spot", paper=paper)
    assert status == 0, printed
    assert calls[0] == ["python", "-m", "crest_jax.paper", *paper, "--list", "--unfinished"]
    created = [call[5] for call in calls if call[4:5] == ["create"]]
    assert created == ["table-4-cell-3", "table-4-cell-5", "table-4-cell-6"]
    assert all("--spot" in call for call in calls if call[4:5] == ["create"])
    _, _, calls = cloud.run_on_host(0)
    (container,) = containers(calls)
    at = container.index("crest_jax.paper")
    assert container[at:-3] == ["crest_jax.paper", *paper, "--run", "--cell=6"]


@pytest.mark.parametrize(
    ("words", "paper", "name"),
    [
        ([], ["--figure=4"], "figure-4-cell-2"),
        ([], ["--table=4", "--scale=small"], "table-4-small-cell-2"),
        (["--name=mine"], ["--table=4"], "mine-cell-2"),
    ],
)
def test_jobs_are_named_after_table_and_cell(submit_table, words, paper, name):
    _, _, calls = submit_table(*words, paper=[*paper, "--runs=gs://my-bucket/runs"])
    assert next(call[5] for call in calls if call[4:5] == ["create"]) == name


def test_what_could_not_be_submitted_is_said(cloud, submit_table):
    status, printed, calls = submit_table(CREATE_STATUS="1")
    assert status == 1
    assert verbs(calls).count("create") == 4
    assert printed.endswith("error: not submitted: cells 2 3 5 6 of table-4\n")
    status, printed, calls = submit_table(paper=["--runs=gs://my-bucket/runs"])
    assert (status, calls) == (64, [])
    assert "error: after -- goes --table=N or --figure=N" in printed
    (cloud.folder / "listing").write_text("")
    status, printed, calls = submit_table()
    assert (status, printed, verbs(calls)) == (0, "nothing is left to run\n", [])


# The image


def test_the_image_gets_files_that_are_there_and_a_signal_reaches_the_program():
    text = (SCRIPTS / "Dockerfile").read_text().replace("\\\n", " ")
    steps = re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert all((REPOSITORY / name).exists() for name in copied)
    # .dockerignore lets these through, and no others.
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    # A shell in between would keep SIGTERM for itself.
    (entrypoint,) = [rest for step, rest in steps if step == "ENTRYPOINT"]
    assert json.loads(entrypoint) == ["tini", "--", "python", "-m"]
    assert [step for step, _ in steps if step == "CMD"] == []


def test_the_images_first_layer_can_be_installed_from_what_is_there_by_then(tmp_path):
    text = (SCRIPTS / "Dockerfile").read_text().replace("\\\n", " ")
    before, installing = re.search(
        r"^(.*?)^RUN (touch .*?pip install.*?)$", text, re.M | re.S
    ).groups()
    for names in re.findall(r"^COPY (.*) \./$", before, re.MULTILINE):
        for name in names.split():
            shutil.copy(REPOSITORY / name, tmp_path / name)
    preparing = installing.rpartition("&&")[0]
    command = f"{preparing} && {sys.executable} setup.py -q build_py --build-lib=built"
    done = subprocess.run(["sh", "-c", command], cwd=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
