"""The experiment that the campaigns of faults.py train, with faults on demand.

It has all that can go wrong on resume (dropout, batch norm, an average, augmentation, a schedule),
in a network so small that a step takes a millisecond. With TASK=counting in the environment every
array of its state counts the steps, and the log holds a checksum of each batch's example ids: a
checkpoint mixed of two steps, or another order of the data, shows.

FAULT='{"kind": "stuck", "rank": 1, "section": "save", "step": 12}' in the environment makes that
process fail, once, when it comes to the section at that step or later. The moment is written to
the file that "told" names. Each of several processes writes its id into the folder PIDS. VITALS=20
logs what the process holds every 20 steps; VITALS=20,1000 also keeps 1,000 bytes each time.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.checkpoint import Checkpoints
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays, Source
from jaxdl.data.transforms import PadCrop
from jaxdl.evaluate import Context, Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam, Cosine
from jaxdl.task import Batch, Mean, TrainState
from jaxdl.tasks.classification import Classification

BATCH = 128
FAULT: dict[str, Any] = json.loads(os.environ.get("FAULT", "{}"))
RANK = os.environ.get("JAX_PROCESS_ID")

if RANK and "PIDS" in os.environ:
    Path(os.environ["PIDS"], RANK).write_text(str(os.getpid()))


def trip(section: str, step: int) -> None:
    """The fault, if this is its place."""
    if (FAULT.get("section") != section or step < FAULT["step"]
            or FAULT.get("rank", 0) != int(RANK or 0)):
        return
    FAULT["section"] = None  # once
    if FAULT.get("quietly"):  # not during a save
        while list(Path(FAULT["quietly"]).glob("*.pending")):
            time.sleep(0.001)
    if "told" in FAULT:
        Path(FAULT["told"]).write_text(repr(time.time()))
    kind, path = FAULT["kind"], FAULT.get("path", "/")
    if kind.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[kind])
    elif kind == "raise":
        raise ValueError("planted by faulty.py")
    elif kind == "stuck":
        while True:
            time.sleep(0.1)
    elif kind == "fill":
        fill(Path(path), FAULT["leave"])
    elif kind == "inodes":
        many(Path(path), FAULT["leave"])
    elif kind == "read-only":
        subprocess.run(["mount", "--bind", path, path], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)


def fill(folder: Path, leave: int) -> None:
    """A file that leaves so many bytes of a file system."""
    found = os.statvfs(folder)
    size = found.f_bavail * found.f_frsize - leave
    if size > 0:
        with (folder / "ballast").open("w") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def many(folder: Path, leave: int) -> None:
    """Empty files until so many more can be made."""
    (folder / "ballasts").mkdir()
    for i in range(os.statvfs(folder).f_favail - leave):
        (folder / "ballasts" / str(i)).touch()


_save = Checkpoints.save


def save(self: Checkpoints, step: int, *arguments: Any, **options: Any) -> None:
    """Starts to save, and trips while it goes on."""
    _save(self, step, *arguments, **options)
    trip("save", step)


Checkpoints.save = save  # type: ignore[method-assign]


class Faulty(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        if batch_size == BATCH:
            trip("step", position // batch_size)
        return super().index(seed, position, batch_size)


@dataclass(frozen=True, kw_only=True)
class FaultyDigits(Digits):
    def open(self, split: str) -> Source:
        trip("start", 0)
        source: Any = super().open(split)
        return Faulty(arrays=source.arrays, transforms=source.transforms)


@dataclass(frozen=True, kw_only=True)
class FaultyEvaluate(Evaluate):
    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        trip("evaluation", context.step)
        return super().__call__(task, state, context)


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """What the process holds: MiB of memory, open files, threads.

    Attributes:
      every: steps.
      leak: bytes that are kept at each evaluation: a planted mistake.
    """

    every: int
    leak: int = 0

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        if self.leak:
            context.compiled.setdefault("leak", []).append(np.ones(self.leak, np.uint8))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text()
                      .splitlines() if ":" in line)
        return {"rss": int(status["VmRSS"].split()[0]) / 1024,
                "files": len(os.listdir("/proc/self/fd")), "threads": int(status["Threads"])}


def checksum(index: Any) -> Any:
    """Of example ids and their order, mod 2^32; the same for NumPy and JAX, sharded or not."""
    weights = np.arange(1, len(index) + 1, dtype=np.uint32) * np.uint32(2_654_435_761)
    return ((index.astype(np.uint32) + 1) * weights).sum(dtype=np.uint32)


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Every element of its parameters is the number of the step.

    Attributes:
      size: parameters in each of two arrays.
    """

    size: int = 1 << 15

    def init(self, key: jax.Array, batch: Batch, tx: Any) -> TrainState:
        return TrainState(
            step=jnp.int32(0), seen=jnp.uint32(0), key=key, frozen={}, mutable={}, opt_state=(),
            ema=None, params={"a": jnp.zeros(self.size), "b": jnp.zeros((2, self.size // 2))})

    def step(self, state: TrainState, batch: Batch, tx: Any) -> tuple[TrainState, Any]:
        new = replace(state, step=state.step + 1, seen=state.seen + len(batch["index"]),
                      params=jax.tree.map(lambda x: x + 1, state.params))
        return new, {"loss": Mean.of(batch["label"], batch["mask"]),
                     "ids": checksum(batch["index"])}

    def evaluate(self, state: TrainState, batch: Batch) -> Mapping[str, Mean]:
        return {"loss": Mean.of(batch["label"], batch["mask"])}


def config() -> Experiment:
    counting = os.environ.get("TASK") == "counting"
    every, leak = map(int, f"{os.environ.get('VITALS', '0')},0".split(",")[:2])
    vitals: dict[str, Any] = {"vitals": Vitals(every=every, leak=leak)} if every else {}
    return Experiment(
        task=Counting() if counting else Classification(
            model=MLP(widths=(32,), batch_norm=True, dropout=0.2), ema=0.95),
        data=FaultyDigits(size=8, channels=1, augment=(PadCrop(pad=1),)),
        optimizer=Adam(learning_rate=Cosine(peak=1e-2, warmup=0.1), weight_decay=1e-3, clip=1.0),
        evals={"test": FaultyEvaluate(every=10), **vitals},
        best=Best() if counting else Best(metric="test/accuracy"),
        steps=40, batch_size=BATCH, log_every=5, save_every=5,
    )
