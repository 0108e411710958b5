"""Contests between processes that take turns: what `train.py` and `input.py` share.

Each contender is a process of `peers/`, in its own environment. All are started, one after another,
then asked in turn, in a new random order each round, to run so many steps; the others sleep
meanwhile. So all see the same states of the machine, and ratios are taken within a round.
"""

import argparse
import contextlib
import fcntl
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

PEERS = Path(__file__).parent / "peers"
TORCH, KERAS = "torch==2.13.0", "keras==3.15.1"
console = Console()


class Contender:
    """A running process of `peers/`."""

    def __init__(self, name: str, workload: str, python: str, arguments: Sequence[str],
                 log: Path) -> None:
        self.name, self.log = name, log
        self.seconds: list[float] = []  # of a step, in each round
        self.idle = 0.  # seconds of processor time while another one was asked
        tuned = name.endswith(" tuned") or name.startswith("jaxdl")
        environment = {**os.environ, "BENCHMARK_ALLOCATOR": "tuned" if tuned else "default",
                       "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2",
                       # Several processes share a GPU.
                       "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            [python, str(PEERS / arguments[0]), workload, *arguments[1:]], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True)

    def ready(self) -> dict[str, Any] | None:
        """What it says when it has run its first steps; None if it failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line.removeprefix("ready ")) if line.startswith("ready ") else None

    def ask(self, steps: int) -> tuple[float, float]:
        """(seconds, last loss) of so many steps."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended: {tail(self.log)}")
        seconds, loss = json.loads(line)
        return seconds, loss

    def processor(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def realtime(self) -> None:
        """Puts all its threads, and those of the processes that it has started, into the class
        SCHED_RR, which others on the machine cannot push aside in the middle of a parallel section.
        """
        waiting = [self.process.pid]
        while waiting:
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(5))
                    waiting += map(int, (task / "children").read_text().split())

    def stop(self) -> None:
        self.process.stdin and self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass
class Result:
    """What one contender of one workload did."""

    name: str
    ready: dict[str, Any]
    seconds: list[float] = field(default_factory=list)  # of a step, in each round
    ratios: list[float] = field(default_factory=list)  # reference's seconds over its own
    behind: list[float] = field(default_factory=list)  # its seconds over those of jaxdl


def tail(log: Path) -> str:
    lines = log.read_text().strip().splitlines()
    return lines[-1][:300] if lines else "no message"


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Holds the lock, if there is one, so that two benchmarks do not measure at once."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compete(workload: str, contenders: Mapping[str, Sequence[str]], pythons: Mapping[str, str],
            flags: argparse.Namespace, records: Any) -> list[Result]:
    """Runs some contenders against each other.

    Args:
      workload: their first argument.
      contenders: file and further arguments of each.
      pythons: interpreters by what a name begins with: "torch", "keras"; "jax" for all others.
      flags: of `parser`.
      records: file for the measurements.
    """
    running: list[tuple[Contender, Result, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in contenders.items():
            log = Path(folder, name.replace(" ", "_").replace("/", "_"))
            kind = next((k for k in ("torch", "keras") if name.startswith(k)), "jax")
            contender = Contender(name, workload, pythons[kind], arguments, log)
            ready = contender.ready()
            if ready is None:
                contender.stop()
                console.print(f"{workload}: {name} failed: {tail(log)}", markup=False)
                continue
            if flags.chrt:
                contender.realtime()
            once = contender.ask(1)[0]
            running.append((contender, Result(name, ready), math.ceil(flags.seconds / once)))
            console.print(f"{workload}: {name} is ready: {ready['parameters']:,} parameters, first "
                          f"step after {ready['first']:.1f} s, then {once:.3g} s",
                          highlight=False, markup=False, soft_wrap=True)
        sizes = {result.ready["parameters"] for _, result, _ in running}
        if len(sizes) > 1:
            sys.exit(f"{workload}: the contenders differ in their parameters: {sizes}")
        order = random.Random(0)
        for round_ in range(-1, flags.rounds):  # the first one warms up
            with alone(flags.lock):
                for i in order.sample(range(len(running)), len(running)):
                    contender, result, steps = running[i]
                    others = [c for c, _, _ in running if c is not contender]
                    before = [c.processor() for c in others]
                    seconds, loss = contender.ask(steps)
                    for other, used in zip(others, before, strict=True):
                        other.idle += other.processor() - used
                    if round_ < 0:  # a step now takes as long as it will
                        running[i] = contender, result, max(
                            1, math.ceil(flags.seconds * steps / seconds))
                        continue
                    result.seconds.append(seconds / steps)
                    print(json.dumps({"workload": workload, "contender": result.name,
                                      "round": round_, "steps": steps, "seconds": seconds,
                                      "loss": loss}), file=records, flush=True)
        measured = sum(sum(r.seconds) * n for _, r, n in running)
        idle = max((c.idle for c, _, _ in running), default=0.)
        console.print(f"{workload}: {len(running)} processes; a waiting one used at most "
                      f"{idle / max(measured, 1e-9):.1%} of a processor", highlight=False,
                      markup=False, soft_wrap=True)
        for contender, _, _ in running:
            contender.stop()
    return [result for _, result, _ in running]


def groups(names: Sequence[str], together: int, always: Sequence[str]) -> list[list[str]]:
    """The names in groups of at most `together`, each of which has those of `always`, so that the
    ratios to them are taken within a round."""
    rest = [n for n in names if n not in always]
    each = max(1, together - len(always))
    return [always + rest[i:i + each] for i in range(0, max(len(rest), 1), each)]


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high) with the 95 % bootstrap interval of the median."""
    values = np.asarray(ratios)
    drawn = np.random.default_rng(0).choice(values, (2_000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def memory() -> float:
    """Gigabytes that are available."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 1e6


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The flags that contests share."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", help="beginnings of names: jaxdl torch ...")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1., help="of a contender in a round")
    parser.add_argument("--out", type=Path, help="appends every measurement, as JSON lines")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--keras-python", help="one that has Keras and JAX")
    parser.add_argument("--chrt", action="store_true",
                        help="real-time class SCHED_RR for the contenders (needs root)")
    parser.add_argument("--lock", type=Path, help="file to lock during a round")
    return parser


def interpreters(flags: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """The interpreters that the named contenders need, by what names begin with."""
    found = {"jax": sys.executable}
    if any(name.startswith("torch") for name in names):
        found["torch"] = flags.torch_python or environment("torch", TORCH, "numpy")
    if any(name.startswith("keras") for name in names):
        found["keras"] = flags.keras_python or environment(
            "keras", KERAS, f"jax=={version('jax')}")
    return found


def chosen(flags: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The names that --contenders selects."""
    return [name for name in names if flags.contenders is None
            or any(name.startswith(c) for c in flags.contenders)]


def environment(name: str, *packages: str) -> str:
    """The interpreter of a virtual environment with these packages, made if need be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdl/bench" / name
    python, done = folder / "bin/python", folder / "installed"
    if not done.exists() or done.read_text() != " ".join(packages):
        console.print(f"installing {' '.join(packages)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text(" ".join(packages))
    return str(python)


def machine(results: Sequence[Result]) -> str:
    """Where this runs, in a line."""
    with contextlib.suppress(OSError, StopIteration):
        model = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text()
                     .splitlines() if line.startswith("model name"))
        versions = sorted({r.ready["version"] for r in results})
        devices = sorted({r.ready["device"] for r in results})
        return (f"{os.cpu_count()} x {model}; {', '.join(devices)}; Python "
                f"{platform.python_version()}; {'; '.join(versions)}")
    return platform.platform()
