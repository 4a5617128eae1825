"""Several hosts: processes with two devices each, on 127.0.0.1, beside one process with four."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import jax
import numpy as np
import pytest
from conftest import QUICKLY, TINY
from etils.epath import Path

import crest_jax
from crest_jax import files, hosts, mesh
from crest_jax.data import manifest, pseudo_labels, records, writer
from crest_jax.data.records import Images
from crest_jax.data.splits import Split
from crest_jax.errors import ConfigError, DataError

REPOSITORY = Path(__file__).parent.parent
FIELDS = {**TINY, "data.shards": 4, "heartbeat_timeout": 5}
# JAX itself says so, and ends the process.
A_HOST_DIED = -signal.SIGABRT


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(workdir, *, host=None, hosts=2, port=None, devices=2, flags=(), **changes):
    """Starts one host as a user would; alone where no host is named."""
    fields = {f"config.{name}": value for name, value in {**FIELDS, **changes}.items()}
    if host is not None:
        fields |= {"coordinator": f"127.0.0.1:{port}", "hosts": hosts, "host": host}
    environment = os.environ | {
        # A host other than the first finds nothing in the cache, and compiles for itself.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}"
    }
    return subprocess.Popen(
        [sys.executable, "-m", "crest_jax.main", "--config=experiments/digits_lt.py",
         f"--workdir={workdir}", *(f"--{name}={value}" for name, value in fields.items()), *flags],
        cwd=REPOSITORY, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_two(workdir, **changes):
    port = free_port()
    return [start(workdir, host=host, port=port, **changes) for host in (0, 1)]


def end(processes):
    """Wait for the hosts; return their exit statuses and outputs."""
    printed = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], printed


def wait_for(path, processes):
    while not path.exists():
        assert all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one_process(make_folder):
    folder = make_folder("one") / "run"
    statuses, printed = end([start(folder, devices=4)])
    assert statuses == [0], printed
    return folder


@pytest.fixture(scope="module")
def two_processes(make_folder):
    """A run of two, one of which was killed when it began to score, and which then continued.

    Gives its folder, how long the other process lived on and how it ended, and what was printed
    after both were started again.
    """
    folder = make_folder("two") / "run [1]"  # of which each host has a link of its own
    processes = start_two(folder)
    wait_for(folder / "generation_00" / "checkpoints" / "12", processes)
    processes[1].kill()
    killed = time.monotonic()
    processes[0].wait(timeout=240)
    lived_on = time.monotonic() - killed
    (status, _), ((_, errors), _) = end(processes)
    assert not files.is_whole(folder / "generation_00" / "pseudo_labels")
    statuses, printed = end(start_two(folder))
    assert statuses == [0, 0], printed
    return folder, (lived_on, status, errors), printed


def generations(folder):
    return json.loads((folder / "results.json").read_text())["generations"]


def assert_same_run(folder, expected):
    """Assert results equal within rounding, and the same pseudo-labels and labeled sets."""
    for number, (ours, theirs) in enumerate(
        zip(generations(folder), generations(expected), strict=True)
    ):
        for figure in ("confusion_matrix", "pseudo_labels", "labeled_per_class", "accuracy"):
            assert ours[figure] == theirs[figure]
        here, there = (run / f"generation_{number:02d}" for run in (folder, expected))
        scored, others = (pseudo_labels.read(path / "pseudo_labels") for path in (here, there))
        np.testing.assert_array_equal(scored.ids, others.ids)
        for field in ("labels", "selected", "truth"):
            np.testing.assert_array_equal(getattr(scored, field), getattr(others, field))
        np.testing.assert_allclose(scored.confidence, others.confidence, atol=1e-4)
        manifests = [manifest.read(path / "labeled") for path in (here, there)]
        assert manifests[0] == manifests[1]
        tested = [
            [json.loads(line)["test"]["ema"]["accuracy"] for line in text.splitlines()]
            for text in ((path / "metrics.jsonl").read_text() for path in (here, there))
        ]
        assert tested[0] == tested[1]
    assert any(each["pseudo_labels"]["selected"] != [0] * 10 for each in generations(folder))


def test_two_processes_do_what_one_does_even_when_one_was_killed(two_processes, one_process):
    assert_same_run(two_processes[0], one_process)


def test_a_host_that_is_killed_ends_the_other_in_bounded_time(two_processes):
    _, (lived_on, status, errors), _ = two_processes
    assert lived_on < 8 * FIELDS["heartbeat_timeout"]
    assert status == A_HOST_DIED
    assert "another task died" in errors


def test_each_host_writes_its_own_shards_and_one_what_is_single(two_processes):
    folder, _, ((first, _), (second, _)) = two_processes
    written = sorted(file.name for file in (folder / "generation_00" / "pseudo_labels").iterdir())
    assert written == ["manifest.json", "shard-00000-of-00002.npz", "shard-00001-of-00002.npz"]
    events = [path for path in (folder / "generation_00").iterdir() if "events" in path.name]
    assert len(events) == 1
    lines = (folder / "generation_00" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 12]
    assert "generation 2: accuracy" in first
    assert "accuracy" not in second


def test_batch_norm_within_groups_trains_and_loads(one_process, tmp_path):
    folder = tmp_path / "run"
    statuses, printed = end([start(folder, devices=4, sync_batch_norm_group=2)])
    assert statuses == [0], printed
    assert [each["accuracy"] > 0 for each in generations(folder)] == [True, True]
    mine, others = (crest_jax.load(run).model().batch_stats for run in (folder, one_process))
    means = [np.asarray(stats["BatchNorm_0"]["mean"]) for stats in (mine, others)]
    assert means[0].shape == means[1].shape
    assert not np.allclose(*means)


def test_the_mesh_is_ordered_host_by_host():
    """JAX numbers the devices of a TPU along its torus, in which those of two hosts alternate."""
    devices = [mock.Mock(jax.Device, id=n, process_index=n % 4 // 2) for n in range(8)]
    with mock.patch.object(mesh, "Mesh", return_value=mesh.local_mesh()) as made:
        mesh.mesh_of(devices, group=2)
    (grid, _), _ = made.call_args
    assert [[device.id for device in group] for group in grid] == [[0, 1], [4, 5], [2, 3], [6, 7]]


def test_sigterm_on_one_host_saves_and_stops_both(one_process, tmp_path):
    folder = tmp_path / "run"
    # The first of them alone reads the other run.
    init = {"model.init_from": str(one_process)}
    processes = start_two(folder, steps=400, eval_every=400, checkpoint_every=400, **init)
    wait_for(folder / "generation_00" / "labeled", processes)
    processes[1].send_signal(signal.SIGTERM)
    statuses, printed = end(processes)
    assert statuses == [75, 75], printed
    for _, errors in printed:
        (step,) = re.findall(r"is saved at step (\d+) of 400", errors)
    assert (folder / "generation_00" / "checkpoints" / step).is_dir()
    assert f"model.init_from={one_process}: " in printed[0][0]
    assert (folder / "initial_weights.safetensors").exists()


def test_a_dry_run_of_two_plans_for_both_and_writes_nothing(one_process, tmp_path):
    init = {"model.init_from": str(one_process)}
    statuses, printed = end(start_two(tmp_path / "run", flags=["--dry_run"], **init))
    assert statuses == [0, 0], printed
    (first, _), (second, _) = printed
    assert "54 labeled, 432 unlabeled, 500 test" in first
    assert "4 x cpu" in first
    assert "2 hosts" in first
    assert re.search(r"^weights    \d+ weights taken$", first, re.MULTILINE)
    assert "dry run" not in second
    assert not (tmp_path / "run").exists()


# What is wrong is said on every host


def test_hosts_that_disagree_are_told_in_what(tmp_path):
    port = free_port()
    processes = [start(tmp_path / "run", host=host, port=port, seed=host) for host in (0, 1)]
    statuses, printed = end(processes)
    assert statuses == [1, 1], printed
    for _, errors in printed:
        assert "error: host 1 disagrees with host 0: config.seed: 0 -> 1" in errors
    assert not (tmp_path / "run").exists()


def test_a_first_host_that_is_not_there_is_not_waited_for_for_ever(tmp_path):
    port = free_port()
    began = time.monotonic()
    statuses, printed = end(
        [start(tmp_path / "run", host=1, port=port, flags=["--join_timeout=3"])]
    )
    assert time.monotonic() - began < 60
    assert statuses == [1]
    assert f"error: --coordinator=127.0.0.1:{port} could not be reached within 3 s" in printed[0][1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", None, 0), "--coordinator, --hosts and --host go together"),
        (("127.0.0.1:1", 2, 2), "--host=2 must be between 0 and 1"),
        (("somewhere", 2, 1), "--coordinator=somewhere is no address and port"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        hosts.initialize(*given, find=False, heartbeat_timeout=1, join_timeout=1)


ALONE = """
import jax
from crest_jax import hosts
from crest_jax.errors import HostError
alone = (None, None, None)
hosts.initialize(*alone, find=False, heartbeat_timeout=1, join_timeout=1)
assert not jax.distributed.is_initialized()
try:
    hosts.initialize(*alone, find=True, heartbeat_timeout=1, join_timeout=1)
except HostError as error:
    print(error)
"""


def test_slurm_around_a_single_process_is_no_other_host():
    """This is the case in an interactive allocation, without srun."""
    ran = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=REPOSITORY, env={**os.environ, "SLURM_NTASKS": "4"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("--find_hosts: JAX finds no other hosts here")


# One host has an error of its own, of ours or not, or nothing.
TOGETHER = """
import os
import signal
import sys
import time
import numpy as np
from crest_jax import hosts
from crest_jax.errors import CrestError, DataError
from crest_jax.preemption import deferred_sigterm
port, host = int(sys.argv[1]), int(sys.argv[2])
hosts.initialize(f"127.0.0.1:{port}", 2, host, find=False, heartbeat_timeout=10,
                       join_timeout=60)
assert hosts.on_all(abs, host) == host
assert hosts.on_first(abs, host) == (0 if host == 0 else None)
assert hosts.from_first(dict, host=host) == {"host": 0}
assert hosts.total(np.array([2**40 + host])).tolist() == [2**41 + 1]
for error in (DataError("no data"), OSError("no space")):
    def do(failing):
        if host == failing:
            raise error
    try:
        hosts.on_all(do, failing=1)
    except Exception as caught:
        print(type(caught).__name__, caught)
hosts.check_agreement({"step": 3})
try:
    hosts.check_agreement({"step": host})
except CrestError as caught:
    print(caught)

# A generation of five steps, and one of three; SIGTERM comes between them.
with deferred_sigterm() as stopping:
    first = [stopping() for _ in range(5)]
if host == 1:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)
hosts.from_first(lambda: None)
with deferred_sigterm() as stopping:
    second = [stopping() for _ in range(3)]
print(any(first), any(second))
"""


def test_an_error_or_a_sigterm_of_any_host_is_known_to_all():
    port = free_port()
    environment = {**os.environ, "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(port), str(host)], cwd=REPOSITORY,
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for host in (0, 1)
    ]  # fmt: skip
    statuses, ((first, _), (second, _)) = end(processes)
    assert statuses == [0, 0]
    differ = "host 1 disagrees with host 0: step: 0 -> 1"
    for printed, where in ((first, "on host 1: "), (second, "")):
        lines = [line for line in printed.splitlines() if "[Gloo]" not in line]
        data, disk, disagreement, heard = lines
        assert data == f"DataError {where}no data"
        assert disk == f"{'HostError' if where else 'OSError'} {where}no space"
        assert disagreement.startswith(differ)
        assert heard == "False True", "of a SIGTERM between two generations"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_PROCESS_ADDRESSES": "10.0.0.1:8476,10.0.0.2:8476"}, True),
    ],
)
def test_clusters_are_known_by_what_they_set(environment, expected):
    assert hosts._started_together(environment) is expected


# The parts that hosts have


def test_shares_are_all_of_a_split_in_its_order():
    images = Images(
        [str(number) for number in range(11)],
        np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1),
        np.arange(11, dtype=np.int32),
    )
    split = Split(11, np.bincount(images.labels), [images])
    for count in (1, 2, 3, 16):
        shares = [part for host in range(count) for part in split.share(host, count)]
        together = [name for part in shares for name in part.ids]
        assert together == images.ids
        sizes = [len(part.ids) for part in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_pseudo_label_shard_that_is_missing_is_found(tmp_path):
    folder = tmp_path / "pseudo_labels"
    files.begin_folder(folder)
    written = []
    for host in range(3):
        some = np.arange(4 * host, 4 * host + 4)
        scored = pseudo_labels.PseudoLabels(some.astype("S"), some, some / 100, some % 2 == 0, some)
        written.append(pseudo_labels.write_shard(folder, scored, host=host, hosts=3))
    for wrong in (written[1:], written + written[:1]):
        with pytest.raises(DataError, match="not one shard each"):
            pseudo_labels.finish(folder, wrong)
    assert not files.is_whole(folder)
    pseudo_labels.finish(folder, written[::-1])
    assert pseudo_labels.read(folder).labels.tolist() == list(range(12))
    (folder / "shard-00001-of-00003.npz").unlink()
    with pytest.raises(DataError, match=r"shard-00001-of-00003\.npz cannot be read"):
        pseudo_labels.read(folder)


def test_records_of_several_hosts_are_those_of_one(tmp_path, one_process):
    """They are equal byte for byte; a folder with a shard too few or too many is not whole."""
    source = one_process / "splits" / "labeled"
    examples = list(records.read(source))
    names = manifest.read(source)["class_names"]
    writer.write(tmp_path / "one", examples, class_names=names, shards=7)
    writers = [
        writer.Writer(
            tmp_path / "three", examples=len(examples), class_names=names, shards=7, host=host,
            hosts=3,
        )
        for host in range(3)
    ]  # fmt: skip
    writers[0].begin()
    for each in writers:
        for row in each.rows:
            each.add(examples[row])
        each.close()
    written = [entry for each in reversed(writers) for entry in each.written]
    for wrong in (written[1:], written + written[:1]):
        with pytest.raises(DataError, match="not each of 7 once"):
            writers[0].finish(wrong)
    assert not files.is_whole(tmp_path / "three")
    writers[0].finish(written)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "three" / file.name).read_bytes()
