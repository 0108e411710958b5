"""Which checkpoints stay: random schedules against a policy that is written here a second time.

`jaxdl.checkpoint.Checkpoints` runs as it is; only what Orbax would write and read is replaced by a
file of some bytes, so that a schedule takes milliseconds. A kill is an exception at the n-th file
operation, after which the process can do nothing to its files any more. `faults.py` runs thousands
of schedules, tests/test_faults_storage.py some hundred.
"""

import contextlib
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as orbax

from jaxdl import checkpoint, train
from jaxdl.checkpoint import Checkpoints, committed
from jaxdl.errors import RunError, UserError

# Orbax, of small files.


class Manager:
    """Stands in for orbax.CheckpointManager: writes beside the place, and renames."""

    def __init__(self, folder: Path, options: Any = None) -> None:
        self.folder = Path(folder)

    def save(self, step: int, args: Any) -> bool:
        part = self.folder / f"{step}.orbax-checkpoint-tmp-0"
        (part / "default").mkdir(parents=True)
        (part / "_METADATA").write_text("{}")
        (part / "default" / "manifest.ocdbt").write_text(str(int(args.item["x"])))
        part.rename(self.folder / str(step))
        return True

    def delete(self, step: int) -> None:
        shutil.rmtree(self.folder / str(step))

    def wait_until_finished(self) -> None:
        """It has written already."""

    reload = close = wait_until_finished


class Reader:
    """Stands in for orbax.PyTreeCheckpointer."""

    def restore(self, folder: Path, args: Any) -> Any:
        return {"x": np.int32((Path(folder) / "manifest.ocdbt").read_text())}


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    with (mock.patch.object(orbax, "CheckpointManager", Manager),
          mock.patch.object(orbax, "PyTreeCheckpointer", Reader),
          mock.patch.object(orbax.checkpoint_utils, "construct_restore_args", dict)):
        yield


TARGET = {"x": jax.ShapeDtypeStruct((), np.int32)}


# Kills.


class Killed(BaseException):
    """Nothing after it happens."""


_left: int | None = None  # file operations until the kill; None for no kill
_hooked = False


def _watch(event: str, args: tuple[Any, ...]) -> None:
    global _left
    if _left is None or event not in ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir"):
        return
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    if _left == 0:
        raise Killed
    _left -= 1


@contextlib.contextmanager
def killed_after(operations: int | None) -> Iterator[None]:
    """Inside, the process dies after so many file operations."""
    global _left, _hooked
    if not _hooked:
        sys.addaudithook(_watch)  # for good: one cannot be taken away
        _hooked = True
    _left = operations
    try:
        yield
    finally:
        _left = None


# Schedules.


@dataclass(frozen=True)
class Save:
    """Trains a step, which comes to this metric, and saves; the n-th operation kills."""

    metric: float
    kill: int | None = None


@dataclass(frozen=True)
class Restart:
    """Another process, which keeps so many; the n-th operation kills it."""

    keep: int
    kill: int | None = None


@dataclass(frozen=True)
class Damage:
    """Of the newest (0) or the one before (1): its arrays or its manifest."""

    back: int
    manifest: bool


Event = Save | Restart | Damage


def schedule(chance: random.Random) -> list[Event]:
    """Eight to sixteen events. Metrics tie, and a quarter of them are NaN."""
    def event() -> Event:
        kill = chance.randrange(30) if chance.random() < 0.25 else None
        if (kind := chance.random()) < 0.65:
            metric = math.nan if chance.random() < 0.25 else chance.randrange(6) / 5
            return Save(metric, kill)
        if kind < 0.85:
            return Restart(chance.randint(1, 3), kill)
        return Damage(chance.choice((0, 0, 1)), chance.random() < 0.4)

    return [event() for _ in range(chance.randint(8, 16))]


class Violation(Exception):
    """What should not have happened."""


@dataclass
class Policy:
    """What ought to be on disk.

    Attributes:
      keep: how many of the newest stay.
      history: the metric of each step of the run that is under way.
      intact: of the committed steps, whether they can be restored.
      unreadable: steps whose manifest is damaged.
    """

    keep: int
    history: dict[int, float] = field(default_factory=dict)
    intact: dict[int, bool] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)

    def best(self, until: int) -> int | None:
        """The first step with the greatest metric, up to a step. NaN is never best."""
        found = {s: m for s, m in self.history.items() if s <= until and not math.isnan(m)}
        return min((s for s, m in found.items() if m == max(found.values())), default=None)

    def stays(self, steps: set[int]) -> set[int]:
        """Those that the policy keeps: the newest, what was the best when each was saved, and what
        it cannot judge, which is never deleted."""
        known = sorted(steps - self.unreadable)
        newest = known[-self.keep:]
        return {*newest, *(self.best(s) for s in newest), *self.unreadable} & steps


class Trial:
    """One schedule, in a folder of its own."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.policy = Policy(keep)
        self.store = Checkpoints(folder, keep)
        self.step = 0
        self.best: float | None = None
        self.best_step: int | None = None
        self.over = False

    def run(self, events: list[Event]) -> None:
        for event in events:
            if self.over:
                return
            {Save: self.save, Restart: self.restart, Damage: self.damage}[type(event)](event)
            self.check()

    def check(self) -> None:
        policy, steps = self.policy, committed(self.folder)
        if set(steps) != set(policy.intact):
            raise Violation(f"{steps} are committed, not {sorted(policy.intact)}")
        best = policy.best(self.step)
        if best is not None and best not in steps and not self.over:
            raise Violation(f"the best, {best}, is not among {steps}")

    def save(self, event: Save) -> None:
        self.step += 1
        policy, step = self.policy, self.step
        if train.better(event.metric, self.best, "max"):
            self.best, self.best_step = event.metric, step
        before = set(policy.intact)
        policy.history[step] = event.metric
        with killed_after(event.kill):
            try:
                self.store.save(step, {"x": np.int32(step)}, best=self.best_step, meta={
                    "progress": {"best": self.best, "best_step": self.best_step}})
                self.store.wait()
                died = False
            except (Killed, RunError) as error:
                if event.kill is None:
                    raise Violation(f"the save of {step} failed: {error!r}") from error
                died = True
        stays, found = policy.stays(before | {step}), set(committed(self.folder))
        if died and step not in found:
            if found != before:
                raise Violation(f"{before - found} lost in a save that was killed")
        elif died:
            if not stays <= found <= before | {step}:
                raise Violation(f"{sorted(found)} after a kill, at least {sorted(stays)} expected")
        elif found != stays:
            raise Violation(f"{sorted(found)} after a save, {sorted(stays)} expected")
        policy.intact = {s: policy.intact.get(s, True) for s in found}
        policy.unreadable &= found
        if died:
            self.restart(Restart(policy.keep))

    def restart(self, event: Restart) -> None:
        policy = self.policy
        policy.keep = event.keep
        good = [s for s, intact in policy.intact.items() if intact]
        newest = max(good, default=None)
        with killed_after(event.kill):
            try:
                self.store = Checkpoints(self.folder, event.keep)
                found = self.store.restore(TARGET)
            except Killed:
                kept = {s for s in policy.intact if newest is None or s <= newest}
                left = set(committed(self.folder))
                if not kept <= left <= set(policy.intact):
                    raise Violation(f"{sorted(left)} after a kill in a restart") from None
                policy.intact = {s: policy.intact[s] for s in left}
                return self.restart(Restart(event.keep))
            except UserError as error:
                if newest is not None:
                    raise Violation(f"{newest} is intact, but: {error}") from error
                self.over = True  # All are damaged: nothing is deleted, and the user is asked.
                return
        if found is None:
            if policy.intact:
                raise Violation(f"nothing restored of {sorted(policy.intact)}")
            self.step, self.best, self.best_step = 0, None, None
        else:
            state, meta, skipped = found
            self.step = int(state["x"])
            self.best, self.best_step = meta["progress"]["best"], meta["progress"]["best_step"]
            bad = [s for s in policy.intact if newest is None or s > newest]
            if self.step != newest or len(skipped) != len(bad):
                raise Violation(f"{self.step} restored, {newest} expected; {skipped}")
            if self.best_step != policy.best(self.step):
                raise Violation(f"{self.best_step} restored as the best of {policy.history}")
        policy.history = {s: m for s, m in policy.history.items() if s <= self.step}
        policy.intact = {s: intact for s, intact in policy.intact.items() if s <= self.step}
        policy.unreadable &= set(policy.intact)

    def damage(self, event: Damage) -> None:
        steps = sorted(self.policy.intact)
        if len(steps) <= event.back or not self.policy.intact[steps[-1 - event.back]]:
            return
        step = steps[-1 - event.back]
        self.policy.intact[step] = False
        path = self.folder / "arrays" / str(step) / "default" / "manifest.ocdbt"
        if event.manifest:
            self.policy.unreadable.add(step)
            path = self.folder / f"{step}.json"
        if not path.exists():
            raise Violation(f"{path} is gone, and its step is counted")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def violation(events: list[Event], folder: Path, keep: int = 2) -> str | None:
    """What a schedule came to; None if all was as the policy says."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with small_files():
            Trial(folder, keep).run(events)
    except Violation as error:
        return str(error)
    return None


# Mutants: mistakes that the schedules must find.


def nan_is_best(value: float, than: float | None, mode: str) -> bool:
    return than is None or not value <= than


def files_first(self: Checkpoints, step: int) -> None:
    self._manager.delete(step)
    (self.folder / f"{step}.json").unlink()


def newest_alone(self: Checkpoints, step: int, manifest: Any, best: int | None) -> list[int]:
    commit(self, step, manifest, best)
    steps = committed(self.folder)
    return [old for old in steps if old not in (*steps[-self.keep:], best)]


def deleted_before(self: Checkpoints, step: int, manifest: Any, best: int | None) -> list[int]:
    for old in committed(self.folder)[:1 - self.keep or None]:
        if old != best:
            self._delete(old)
    commit(self, step, manifest, best)
    return []


def unverified(folder: Path, step: int) -> Any:
    return checkpoint.read_manifest(folder, step)


commit = Checkpoints._committed
MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "NaN counts as best": (train, "better", nan_is_best),
    "files deleted before the manifest": (Checkpoints, "_delete", files_first),
    "only the newest's best stays": (Checkpoints, "_committed", newest_alone),
    "old ones deleted before the commit": (Checkpoints, "_committed", deleted_before),
    "files not verified": (checkpoint, "verify", unverified),
}
