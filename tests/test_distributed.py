"""Several processes: the numbers of one, one run directory, and one end for all.

This file is also the experiment that they run, in float64, with faults on demand.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl import distributed, parallel
from jaxdl.checkpoint import committed
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays, Records, Source
from jaxdl.errors import UserError
from jaxdl.experiment import Experiment, Mesh
from tests.test_cli import error
from tests.tiny import config as tiny

ROOT = Path(__file__).parent.parent
RANK = os.environ.get("JAX_PROCESS_ID", "0")


def trip(position: int, batch_size: int) -> None:
    """JAXDL_TEST_FAULT="RANK KIND POSITION" makes that process fail when it reaches the example."""
    rank, kind, at = os.environ.get("JAXDL_TEST_FAULT", "- - -1").split()
    if rank == RANK and position <= int(at) < position + batch_size:
        if kind == "error":
            raise UserError("file x.png: truncated.")
        if kind == "orphan":
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        if kind == "stuck":
            time.sleep(3600)
        os.kill(os.getpid(), signal.Signals[kind])


class Faulty(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        trip(position, batch_size)
        return super().index(seed, position, batch_size)


@dataclass(frozen=True)
class Examples:
    """Examples one by one; JAXDL_TEST_READS names a file for the ids that were read."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, np.ndarray]]:
        if path := os.environ.get("JAXDL_TEST_READS"):
            with open(f"{path}.{RANK}", "a") as file:
                file.write(json.dumps(ids) + "\n")
        return [{k: x[i] for k, x in self.arrays.items()} for i in ids]


class FaultyRecords(Records):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        trip(position, batch_size)
        return super().index(seed, position, batch_size)


@dataclass(frozen=True, kw_only=True)
class FaultyDigits(Digits):
    """
    Attributes:
      host: read on the host, not held on the device.
    """

    host: bool = False

    def open(self, split: str) -> Source:
        source: Any = super().open(split)
        if self.host:
            return FaultyRecords(examples=Examples(source.arrays),  # type: ignore[arg-type]
                                 transforms=source.transforms)
        return Faulty(arrays=source.arrays, transforms=source.transforms)


def config() -> Experiment:
    experiment: Any = tiny()
    task, data = experiment.task, experiment.data
    return dataclasses.replace(
        experiment, mesh=Mesh(), steps=50, log_every=1,
        task=dataclasses.replace(task, compute_dtype="float64"),
        data=FaultyDigits(size=data.size, channels=data.channels, augment=data.augment))


def run(folder: Path, *arguments: str, processes: int = 1, devices: int = 1,
        fault: str = "- - -1", mode: str = "train") -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    start = ["launch", f"--processes={processes}", mode] if processes > 1 else [mode]
    return subprocess.run(
        [sys.executable, "launch.py", *start, f"--experiment={__file__}", f"--workdir={folder}",
         *arguments], capture_output=True, text=True, cwd=ROOT, timeout=600,
        env={**os.environ, "JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": str(devices),
             "JAXDL_TEST_FAULT": fault, "JAXDL_TEST_READS": str(folder.with_suffix(".reads"))})


def logged(folder: Path, *names: str) -> dict[int, list[float]]:
    """By step, what was logged under these names."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: [line[n] for n in names] for line in lines if names[0] in line}


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Through two hand-overs: two processes, one, two again; numbers, order of data, evaluation."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(one).returncode == 0
    host = "--data.host=True", "--accept_changes"
    many = {"processes": 2, "devices": 2}

    done = run(two, *host, fault="1 SIGTERM 2000", **many)  # type: ignore[arg-type]
    last = committed(two / "checkpoints")[-1]
    assert (done.returncode, done.stderr) == (
        75, f"SIGTERM: saved step {last}; continue with --workdir={two}\n")
    assert 0 < last <= 25  # It reads ahead; the other process may have been some steps ahead.
    assert "Gloo" not in done.stdout and done.stdout.count("compiled in") == 1

    done = run(two, "--accept_changes", fault=f"0 SIGTERM {(last + 12) * 128}")
    assert done.returncode == 75 and f"continuing {two} from step {last}" in done.stdout
    assert committed(two / "checkpoints")[-1] == last + 13
    done = run(two, *host, "--mesh.data=2", "--mesh.fsdp=2", **many)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert f"continuing {two} from step {last + 13}" in done.stdout

    for names in (("train/loss", "train/grad_norm"), ("test/loss",)):
        expected, found = logged(one, *names), logged(two, *names)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9)
    counts = "train/accuracy", "test/accuracy"
    assert [logged(two, n) for n in counts] == [logged(one, n) for n in counts]

    source = config().data.open("train")
    for rank in range(2):
        lines = (tmp_path / f"two.reads.{rank}").read_text().splitlines()
        read = [tuple(json.loads(line)) for line in lines]
        assert {len(ids) for ids in read} == {64}
        for step in [*range(last), *range(last + 13, 50)]:
            mine = source.index(0, step * 128, 128)[64 * rank:64 * (rank + 1)]
            assert tuple(map(int, mine)) in read

    again = run(two, mode="evaluate", **many)  # type: ignore[arg-type]
    assert again.returncode == 0, again.stderr
    (loss, accuracy), = [v for s, v in logged(two, "test/loss", "test/accuracy").items() if s == 50]
    assert f"{loss:.6g}" in again.stdout and again.stdout.count(f"{accuracy:.6g}") == 1


@pytest.mark.parametrize(("fault", "status", "message"), [
    ("0 SIGKILL 2000", 1, "process 1: error: process 0 "),
    ("1 SIGKILL 2000", 1, "error: process 1 ended without a word (killed, or out of memory?)"),
    ("1 error 2000", 2, "process 1: error: file x.png: truncated."),
])
def test_what_ends_one_process_ends_all_in_one_line(tmp_path: Path, fault: str, status: int,
                                                    message: str) -> None:
    done = run(tmp_path / "run", fault=fault, processes=2)
    assert done.returncode == status
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert committed(tmp_path / "run" / "checkpoints")


def test_no_process_outlives_its_launcher(tmp_path: Path) -> None:
    done = run(tmp_path / "run", fault="1 orphan 2000", processes=2)
    assert done.returncode == -signal.SIGKILL  # `run` returned: both have closed their output.


class Store:
    """The part of JAX's coordination service that brings processes together."""

    def __init__(self) -> None:
        self._set, self._value = threading.Event(), ""

    def key_value_set(self, key: str, value: str) -> None:
        self._value = value
        self._set.set()

    def blocking_key_value_get(self, key: str, timeout: int) -> str:
        assert self._set.wait(timeout / 1000)
        return self._value


def test_all_leave_at_the_same_call() -> None:
    store, left, peers = Store(), {}, []

    def process(rank: int) -> None:
        me = distributed.Peers(rank, 3, "127.0.0.1", store)
        peers.append(me)
        for call in range(10 ** 7):
            if name := me.poll("SIGINT" if rank == 2 and call >= 20 else ""):
                left[rank] = call, name
                return
            time.sleep(0.001)  # A step, in which the threads that listen can run.

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for me in peers:  # Else the end of one would end this process.
        me.released()
    assert len(left) == 3 and len(set(left.values())) == 1
    assert left[0][0] >= 20 and left[0][1] == "SIGINT"


def test_the_environment_tells_of_several_processes() -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
             "SLURM_STEP_NODELIST": "n[1-2]"}
    batch_script = {k: v for k, v in slurm.items() if k != "SLURM_STEP_NODELIST"}
    for environment, several in [
            ({}, False), ({"JAX_NUM_PROCESSES": "2"}, True), ({"JAX_NUM_PROCESSES": "1"}, False),
            (slurm, True), (slurm | {"SLURM_NTASKS": "1"}, False), (batch_script, False),
            ({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"TPU_WORKER_HOSTNAMES": "a"}, False),
            ({"TPU_WORKER_HOSTNAMES": "a,b"}, True)]:
        assert distributed.announced(environment) is several, environment
    with pytest.raises(UserError, match="SLURM_NTASKS=x in the environment: expected a number"):
        distributed.announced(slurm | {"SLURM_NTASKS": "x"})


def test_gpus_are_shared_out() -> None:
    gpus = distributed.visible_gpus({"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    assert distributed.share(gpus, 2) == [{"CUDA_VISIBLE_DEVICES": "4,5"},
                                          {"CUDA_VISIBLE_DEVICES": "6,7"}]
    assert distributed.share([], 2) == [{}, {}]
    assert distributed.visible_gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}) == []
    with pytest.raises(UserError, match="--processes=8 does not share out 4 GPUs evenly"):
        distributed.share(gpus, 8)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--processes=0"], "--processes=0: expected a number from 1 to 1,024."),
    (["--processes=two"], "--processes=two: expected a number from 1 to 1,024."),
    ([], "--processes=N is missing: how many processes to start."),
    (["--processes=2", "show"], "launch show: launch takes train or evaluate."),
    (["--processes=2", "--", "--experiment=mpl_digits"], "--experiment=mpl_digits: no such"),
    (["--processes=2", "--experiment=mlp_digits", "--steps=x"], "--steps=x: expected"),
])
def test_a_mistake_is_told_before_anything_starts(capfd: pytest.CaptureFixture[str],
                                                  arguments: list[str], message: str) -> None:
    assert error(capfd, "launch", *arguments).startswith(message)


def test_a_mesh_must_fit_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "several", lambda: True)
    assert parallel.arrange(Mesh(data=4, fsdp=2)).batch_ways == 8
    with pytest.raises(UserError, match=r"uses 4 of the 8 devices of all processes; several "
                                        "processes use all, as with mesh.data=-1"):
        parallel.arrange(Mesh(data=4))


def start(rank: int, count: int, address: str) -> subprocess.Popen[str]:
    """A process that does nothing but join the others, and gives them two seconds."""
    code = ("import sys\nfrom jaxdl import cli, distributed\ndistributed.START = 2\n"
            "cli.parse = lambda *a: sys.exit('joined')\n"
            "sys.exit(cli.main(['--experiment=mlp_digits']))")
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, env={
        **os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(rank), "XLA_FLAGS": ""}, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(("rank", "address", "status", "message"), [
    (0, "127.0.0.1:{taken}", 1, "process 0 cannot listen at {address}: the port is in use."),
    (0, "127.0.0.1", 2, "JAX_COORDINATOR_ADDRESS=127.0.0.1 in the environment: expected "
                        "HOST:PORT."),
    (5, "127.0.0.1:{free}", 1,
     "process 5 of 2 cannot join the others at {address}: process_id and num_processes must be "
     "nonnegative, with process_id < num_processes. Got process_id=5, num_processes=2."),
    (0, "127.0.0.1:{free}", 1, "process 0 of 2: the processes did not all come to {address} within "
                               "2 seconds."),
    (1, "127.0.0.1:{free}", 1, "process 1 of 2: the processes did not all come to {address} within "
                               "2 seconds.")])
def test_a_start_that_fails_is_one_line(rank: int, address: str, status: int,
                                        message: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = address.format(taken=taken.getsockname()[1], free=free_port())
        process = start(rank, 2, address)
        err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (status, f"error: {message.format(address=address)}\n")


def test_processes_that_were_told_of_different_numbers_do_not_train_together() -> None:
    address = f"127.0.0.1:{free_port()}"
    processes = [start(rank, count, address) for rank, count in ((0, 2), (1, 3))]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert errors[0] == ("error: process 0 of 2: process 1 was told of 3 processes, process 0 of "
                         "2: JAX_NUM_PROCESSES must be the same.\n")
    assert "process 1: error: process 0 ended without a word" in errors[1]  # after JAX's own page
