"""Trials of a sweep in other processes: on this machine, on a Ray cluster, as SLURM jobs.

Each of the engines calls `work(folder, number, job)`, which trains one trial in its own run
directory and returns what became of it. Nothing else is shared but the folder: the process that
leads reads the trials' logs there, and asks a trial to end with a file. A trial whose process dies
is begun again where its newest checkpoint is. Imports no jax.
"""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from jaxdl.errors import UserError

PRUNE = "prune"  # the file in a trial's directory that asks it to end, with the reason in it


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
      state: "done", "pruned", "failed", "left" (asked to leave, and saved), or "died".
      reason: of all but "done", in one line.
    """

    state: str
    reason: str = ""


def work(folder: str, number: int, job: Mapping[str, Any]) -> dict[str, str]:
    """Trains one trial of a sweep to its end; an Outcome, as plain values."""
    from jaxdl import study

    return dataclasses.asdict(study.work(Path(folder), number, job))


class Engine(Protocol):
    """Where trials are trained."""

    places: int  # how many at once

    def start(self, number: int, job: Mapping[str, Any]) -> None: ...

    def ended(self, seconds: float) -> list[tuple[int, Outcome]]:
        """The trials that have ended, after at most so many seconds."""
        ...

    def leave(self) -> None:
        """Asks all to save and leave."""
        ...

    def close(self) -> None: ...


# Processes of this machine.


class Processes:
    """Processes that stay, so that each imports and compiles once for many trials. They die with
    this one, whatever ends it.

    Args:
      folder: of the sweep.
      count: of processes.
    """

    def __init__(self, folder: Path, count: int) -> None:
        from jaxdl import distributed

        self.places, self._folder = count, folder
        cores = sorted(os.sched_getaffinity(0))
        gpus = distributed.visible_gpus(os.environ)
        self._environments: list[dict[str, str]] = []
        self._cores: list[list[int]] = []
        for i in range(count):
            # Processes that share a GPU share its memory, of which JAX would take three quarters.
            sharing = -(-count // len(gpus)) if gpus else 1
            self._environments.append({
                "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)],
                "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}"} if gpus else {})
            self._cores.append(cores[i::count] or cores)
        self._workers: dict[int, tuple[Any, Connection]] = {}  # by place
        self._busy: dict[int, int] = {}  # place: trial

    def start(self, number: int, job: Mapping[str, Any]) -> None:
        place = next(i for i in range(self.places) if i not in self._busy)
        if place not in self._workers or not self._workers[place][0].is_alive():
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=_serve, args=(theirs, os.getpid(), str(self._folder),
                                     self._environments[place], self._cores[place]))
            process.start()
            theirs.close()
            self._workers[place] = process, ours
        self._busy[place] = number
        with contextlib.suppress(OSError):  # It has died: `ended` tells.
            self._workers[place][1].send((number, job))

    def ended(self, seconds: float) -> list[tuple[int, Outcome]]:
        places = {self._workers[place][1]: place for place in self._busy}
        found = []
        for connection in wait(list(places), seconds) if places else []:
            assert isinstance(connection, Connection)
            place = places[connection]
            try:
                outcome = Outcome(**connection.recv())
            except (EOFError, OSError):
                process = self._workers.pop(place)[0]
                process.join()
                outcome = Outcome("died", _cause(process.exitcode))
            found.append((self._busy.pop(place), outcome))
        return found

    def leave(self) -> None:
        for place in self._busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._workers[place][0].pid, signal.SIGTERM)

    def close(self) -> None:
        for place, (process, connection) in self._workers.items():
            connection.close()
            if place in self._busy:
                process.kill()
        for process, _ in self._workers.values():
            process.join()


def _serve(connection: Connection, parent: int, folder: str, environment: Mapping[str, str],
           cores: list[int]) -> None:
    """What a process of `Processes` does until its connection is closed."""
    os.setsid()  # Ctrl-C is for the one that leads, which tells the others.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG of <linux/prctl.h>
    if os.getppid() != parent:  # It died before.
        os._exit(1)
    os.environ |= environment
    os.sched_setaffinity(0, cores)
    # A signal that comes between two trials: there is nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(work(folder, *connection.recv()))


def _cause(status: int | None) -> str:
    """Why a process ended that should not have."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"its process was killed by {name}" + (
            " (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with status {status}"


# Clusters.


class Ray:
    """Tasks of a Ray cluster: that of RAY_ADDRESS, or one that is started here.

    Args:
      folder: of the sweep; all machines see it under this path.
      count: tasks at once.
    """

    def __init__(self, folder: Path, count: int) -> None:
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("--executor=ray needs Ray: pip install 'jaxdl[ray]'.") from None
        self._ray, self.places, self._folder = ray, count, folder
        address = os.environ.get("RAY_ADDRESS")
        options = {} if address else {"num_cpus": count, "include_dashboard": False}
        # "local": not one that somebody else has left running on this machine.
        ray.init(address=address or "local", ignore_reinit_error=True, log_to_driver=False,
                 logging_level="ERROR", runtime_env={"env_vars": _passed_on()}, **options)
        # A task that died is begun again by us, who know how often it was.
        self._work = ray.remote(num_cpus=1, max_retries=0)(work)
        self._tasks: dict[Any, int] = {}

    def start(self, number: int, job: Mapping[str, Any]) -> None:
        task = self._work.remote(str(self._folder), number, dict(job))
        self._tasks[task] = number

    def ended(self, seconds: float) -> list[tuple[int, Outcome]]:
        if not self._tasks:
            return []
        done, _ = self._ray.wait(list(self._tasks), timeout=seconds)
        found = []
        for task in done:
            try:
                outcome = Outcome(**self._ray.get(task))
            except self._ray.exceptions.RayError as error:
                outcome = Outcome("died", " ".join(str(error).split())[:300])
            found.append((self._tasks.pop(task), outcome))
        return found

    def leave(self) -> None:
        for number in self._tasks.values():
            ask_to_leave(self._folder, number)

    def close(self) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


class Slurm:
    """SLURM jobs, one for each trial, through submitit.

    Args:
      folder: of the sweep; all machines see it under this path.
      count: jobs at once.
      options: parameters of submitit ("slurm_partition=gpu", "timeout_min=120"), and
        "cluster=local" or "cluster=debug" to try it without SLURM.
    """

    def __init__(self, folder: Path, count: int, options: Mapping[str, str]) -> None:
        try:
            import submitit  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("--executor=slurm needs submitit: pip install 'jaxdl[slurm]'."
                            ) from None
        parameters: dict[str, Any] = {name: int(value) if value.isdecimal() else value
                                      for name, value in options.items()}
        cluster = parameters.pop("cluster", "slurm")
        self.places, self._folder = count, folder
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
            self._executor.update_parameters(
                **{"timeout_min": 24 * 60, "name": f"jaxdl-{folder.name}", **parameters})
        except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
            raise UserError(f"--executor=slurm: {' '.join(str(error).split())[:300]}") from error
        self._failed = submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError
        self._jobs: dict[int, Any] = {}

    def start(self, number: int, job: Mapping[str, Any]) -> None:
        self._jobs[number] = self._executor.submit(work, str(self._folder), number,
                                                   dict(job))

    def ended(self, seconds: float) -> list[tuple[int, Outcome]]:
        deadline = time.monotonic() + seconds
        while True:
            done = [number for number, job in self._jobs.items() if job.done()]
            if done or time.monotonic() > deadline or not self._jobs:
                break
            time.sleep(0.1)
        found = []
        for number in done:
            job = self._jobs.pop(number)
            try:
                outcome = Outcome(**job.result())
            except self._failed as error:
                outcome = Outcome("died", f"job {job.job_id}: "
                                  + " ".join(str(error).split())[:300])
            found.append((number, outcome))
        return found

    def leave(self) -> None:
        for number in self._jobs:
            ask_to_leave(self._folder, number)

    def close(self) -> None:
        for job in self._jobs.values():
            with contextlib.suppress(Exception):  # A job that has ended cannot be cancelled.
                job.cancel()


def _passed_on() -> dict[str, str]:
    """What of the environment says how jaxdl and JAX behave."""
    return {name: value for name, value in os.environ.items()
            if name.startswith(("JAX", "XLA_", "XDG_CACHE"))}


# Words between the one that leads and a trial, as files.

LEAVE = "leave"


def ask_to_leave(folder: Path, number: int) -> None:
    """Asks a trial, wherever it is trained, to save and leave."""
    (trial_folder(folder, number) / LEAVE).touch()


def trial_folder(folder: Path, number: int) -> Path:
    """The run directory of a trial."""
    return folder / "trials" / f"{number:04d}"

