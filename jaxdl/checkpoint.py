"""Checkpoints that can be trusted. Orbax writes the arrays; a manifest of ours commits them.

    checkpoints/arrays/STEP/    written by Orbax, asynchronously
    checkpoints/STEP.json       the commit: SHA-256 and size of every file, shape and type of every
                                array, and what the run wants to remember
    checkpoints/STEP.pending    arrays/STEP is ours and not committed yet
    checkpoints/quarantine/     what failed verification, or what we did not write

A step exists only if its manifest verifies. It is un-committed before its files are deleted, and
deleted only after a newer one is committed; the best one stays. Only this file knows Orbax.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import traverse_util

from jaxdl import distributed
from jaxdl.errors import RunError, UserError, nearest
from jaxdl.parallel import bytes_of
from jaxdl.task import named

if TYPE_CHECKING:
    from jaxdl.experiment import InitFrom

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run. One process at a time: the run's lock is held.

    Of several processes that train together each writes its own part of the arrays; the leader
    alone commits, sweeps and decides, and all call the same methods.

    Args:
      folder: the run's `checkpoints` directory.
      keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        import orbax.checkpoint as orbax

        self._orbax = orbax
        self.folder, self.keep = folder.absolute(), keep
        self.arrays = self.folder / "arrays"
        distributed.by_leader(self._open)
        # Named, the processes wait for each other without the devices, which are busy with steps.
        processes = set(range(jax.process_count())) if distributed.several() else None
        self._manager = orbax.CheckpointManager(
            self.arrays, options=orbax.CheckpointManagerOptions(
                max_to_keep=None, create=False,
                multiprocessing_options=orbax.options.MultiprocessingOptions(
                    active_processes=processes),
                async_options=orbax.options.AsyncOptions(
                    # A thread saves the loop 45 ms; between processes, mistakes show sooner here.
                    create_directories_asynchronously=processes is None)))
        self._commit: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failed = False

    def _open(self) -> None:
        try:
            self.arrays.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}).") from error

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return distributed.by_leader(lambda: committed(self.folder))

    def check_space(self, state: Any, copies: int) -> None:
        """Raises a UserError unless there is room for so many checkpoints of this state."""
        needed = copies * bytes_of(state)
        free = distributed.by_leader(lambda: shutil.disk_usage(self.folder).free)
        if free < needed:
            raise UserError(f"{self.folder}: {copies} checkpoints need {needed:,} bytes, {free:,} "
                            "are free.")

    def save(self, step: int, state: Any, meta: Mapping[str, Any], best: int | None = None) -> None:
        """Starts to save. Returns when the arrays have been copied; `poll` tells of failures.

        Args:
          step: names the checkpoint.
          state: any pytree of arrays.
          meta: what to remember with it, plain JSON.
          best: the step that must not be deleted.
        """
        self.wait()
        if step in self.steps():  # The arrays are the same; what is known about them may be more.
            distributed.by_leader(lambda: self._remember(step, meta))
            return
        flat = named(state)
        needed = int(1.1 * bytes_of(state)) + (1 << 20)
        free = distributed.by_leader(lambda: shutil.disk_usage(self.folder).free)
        if free < needed:
            raise RunError(f"{self.folder}: {needed:,} bytes are needed to save step {step}, "
                            f"{free:,} are free; the earlier steps are intact.")
        manifest = {"format": FORMAT, "step": step, "meta": dict(meta),
                    "arrays": {p: [list(x.shape), str(x.dtype)] for p, x in flat.items()}}
        distributed.by_leader(lambda: self._begin(step))
        self._manager.save(step, args=self._orbax.args.StandardSave(_nested(flat)))
        self._commit = threading.Thread(target=self._finish, args=(step, manifest, best),
                                        name=f"commit-{step}", daemon=True)
        self._commit.start()

    def _begin(self, step: int) -> None:
        (self.folder / f"{step}.pending").touch()
        # Orbax's thread will make such a folder; if it could not, the process would not exit for
        # minutes. So the error comes here.
        trial = self.arrays / f"{step}.orbax-checkpoint-tmp-trial"
        trial.mkdir(exist_ok=True)
        trial.rmdir()

    def _finish(self, step: int, manifest: dict[str, Any], best: int | None) -> None:
        try:
            self._manager.wait_until_finished()
            distributed.barrier("commit")
            for old in distributed.by_leader(lambda: self._committed(step, manifest, best),
                                             "commit"):
                self._delete(old)
        except BaseException as error:
            self._error, self._failed = error, True

    def _committed(self, step: int, manifest: dict[str, Any], best: int | None) -> list[int]:
        """Commits what all have written; the steps that are not needed any more."""
        manifest["files"] = digest(self.arrays / str(step), sync=True)
        if "default/manifest.ocdbt" not in manifest["files"]:  # It merges what it finds, if at all.
            raise RunError(f"Orbax did not find what it had written in {self.arrays / str(step)}")
        _sync_folder(self.arrays)
        self._write(step, manifest)
        (self.folder / f"{step}.pending").unlink()
        steps = committed(self.folder)
        kept = steps[-self.keep:]
        # An older one may be what a kept one, if it must be fallen back to, calls the best.
        bests = {best, *(best_step(self.folder, s) for s in kept)}
        return [old for old in steps if old not in kept and old not in bests]

    def _remember(self, step: int, meta: Mapping[str, Any]) -> None:
        manifest = read_manifest(self.folder, step)
        if manifest["meta"] != json.loads(json.dumps(meta)):
            self._write(step, {**manifest, "meta": dict(meta)})

    def _write(self, step: int, manifest: dict[str, Any]) -> None:
        manifest["sha256"] = _seal(manifest)
        write_atomically(self.folder / f"{step}.json", json.dumps(manifest))

    def _delete(self, step: int) -> None:
        if distributed.leads():
            (self.folder / f"{step}.pending").touch()
            (self.folder / f"{step}.json").unlink()
            _sync_folder(self.folder)
        self._manager.delete(step)
        if distributed.leads():
            (self.folder / f"{step}.pending").unlink()

    def poll(self) -> None:
        """Raises what went wrong in a save that has been started."""
        if self._error is not None:
            error, self._error = self._error, None
            raise RunError(f"{self.folder}: saving failed: {_one_line(error)}") from error

    def wait(self) -> None:
        """Until the last save is committed; raises if it was not."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        self.poll()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            except Exception as error:
                if not self._failed:  # else it is the error of that save, once more
                    raise RunError(f"{self.folder}: {_one_line(error)}") from error

    def restore(self, target: Any) -> tuple[Any, dict[str, Any], list[str]] | None:
        """(state, meta, why newer steps were passed over) of the newest step that verifies.

        None if nothing was ever committed. Newer steps that fail are moved to quarantine.

        Args:
          target: the state as `jax.ShapeDtypeStruct`s with shardings.
        """
        skipped: list[str] = []
        for step in reversed(self.steps()):
            try:
                state, meta = load(self.folder, step, target)
            except (UserError, RunError):
                raise
            except Exception as error:  # Orbax raises anything at all on a damaged checkpoint.
                skipped.append(f"checkpoint of step {step} passed over: {_one_line(error)}")
                continue
            distributed.by_leader(lambda step=step: self._quarantine_after(step))
            self._manager.reload()
            return state, meta, skipped
        if skipped:
            raise UserError(f"{self.folder}: no checkpoint is intact. {' '.join(skipped)}")
        return None

    def _quarantine_after(self, step: int) -> None:
        for newer in [s for s in committed(self.folder) if s > step]:
            for source in (self.folder / f"{newer}.json", self.arrays / str(newer)):
                _set_aside(self.folder, source)

    def _sweep(self) -> None:
        """Deletes what a killed save or deletion of ours left; sets aside what is not ours."""
        done = set(committed(self.folder))
        ours = {int(p.stem) for p in self.folder.glob("*.pending") if p.stem.isdecimal()} - done
        for path in sorted(self.arrays.iterdir()):
            step = re.match(r"(\d+)(\.orbax-checkpoint-tmp.*)?$", path.name)
            if step and path.name == str(int(step[1])) and int(step[1]) in done:
                continue
            if step and int(step[1]) in ours and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                _set_aside(self.folder, path)
        for path in self.folder.glob("*.pending"):
            path.unlink()


def _set_aside(folder: Path, path: Path) -> None:
    quarantine = folder / "quarantine"
    quarantine.mkdir(exist_ok=True)
    n = sum(1 for _ in quarantine.iterdir())
    if path.exists() or path.is_symlink():
        path.rename(quarantine / f"{n:04d}-{path.name}")


def committed(folder: Path) -> list[int]:
    """The committed steps of a `checkpoints` directory, in order."""
    try:  # A glob takes a folder that cannot be listed (for want of descriptors, say) for empty.
        names = os.listdir(folder) if folder.exists() else []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}).") from error
    return sorted(int(n[:-5]) for n in names if re.fullmatch(r"(0|[1-9][0-9]*)\.json", n))


def digest(folder: Path, sync: bool = False) -> dict[str, list[Any]]:
    """{relative path: [size, SHA-256]} of every file; links are refused."""
    found: dict[str, list[Any]] = {}

    def unreadable(error: OSError) -> None:  # Left out, its files would never be missed.
        raise ValueError(f"{error.filename} cannot be listed ({error.strerror})") from error

    for root, folders, files in os.walk(folder, onerror=unreadable):
        for name in folders + files:
            path = Path(root, name)
            if path.is_symlink():
                raise ValueError(f"{path} is a symbolic link")
        for name in files:
            path = Path(root, name)
            with path.open("rb") as file:
                if sync:
                    os.fsync(file.fileno())
                found[str(path.relative_to(folder))] = [
                    path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
        if sync:
            _sync_folder(Path(root))
    return found


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of a step; a ValueError if it is not what was written."""
    path = folder / f"{step}.json"
    try:
        manifest = json.loads(path.read_text())
        newer = manifest["format"] > FORMAT
        if not newer and manifest.pop("sha256") != _seal(manifest):
            raise ValueError("changed")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not the manifest that was written") from error
    if newer:
        raise UserError(f"{path}: written by a newer jaxdl (format {manifest['format']}; this one "
                        f"reads up to {FORMAT}).")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content."""
    content = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def best_step(folder: Path, step: int) -> int | None:
    """Which step was the best when this one was saved; None if there was none."""
    try:
        return read_manifest(folder, step)["meta"].get("progress", {}).get("best_step")
    except ValueError:  # A damaged one is passed over at restore, and says nothing here.
        return None


def verify(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of a step whose files are all as they were committed; else a ValueError."""
    manifest = read_manifest(folder, step)
    want, have = manifest["files"], digest(folder / "arrays" / str(step))
    for name in sorted({*want, *have}):
        if want.get(name) != have.get(name):
            state = ("missing" if name not in have else "unexpected" if name not in want
                     else f"of {have[name][0]} bytes, not {want[name][0]}"
                     if have[name][0] != want[name][0] else "changed")
            raise ValueError(f"{folder}/arrays/{step}/{name} is {state}")
    return manifest


def load(folder: Path, step: int, target: Any, partial: bool = False) -> tuple[Any, dict[str, Any]]:
    """(state, meta) of one committed step, verified; reads only, needs no lock.

    Args:
      folder: a run's `checkpoints` directory.
      step: a committed one.
      target: the state as `jax.ShapeDtypeStruct`s with shardings.
      partial: whether the checkpoint may hold more than the target.
    """
    import orbax.checkpoint as orbax

    manifest, flat = distributed.by_leader(lambda: verify(folder, step)), named(target)
    stored = {p: x for p, x in manifest["arrays"].items() if p in flat or not partial}
    _compare(stored, flat, folder / f"{step}.json")
    nested = _nested(flat)
    try:
        restored = orbax.PyTreeCheckpointer().restore(
            folder.absolute() / "arrays" / str(step) / "default", args=orbax.args.PyTreeRestore(
                item=nested, partial_restore=True,
                restore_args=orbax.checkpoint_utils.construct_restore_args(nested)))
    except Exception as error:
        if not distributed.several():
            raise
        # The leader has verified the files: this process sees others, and cannot fall back alone.
        raise RunError(f"{folder}: step {step} cannot be read on this machine: "
                       f"{_one_line(error)}") from error
    arrays = traverse_util.flatten_dict(restored, sep="/")
    state = jax.tree.unflatten(jax.tree.structure(target), [arrays[p] for p in flat])
    return state, manifest["meta"]


def _compare(stored: Mapping[str, Any], target: Mapping[str, Any], file: Path) -> None:
    """Raises a UserError unless the stored arrays are those of the target."""
    problems = [f"{p} is stored as {stored[p][1]}{stored[p][0]}, the experiment has {x.dtype}"
                f"{list(x.shape)}" for p, x in target.items()
                if p in stored and stored[p] != [list(x.shape), str(x.dtype)]]
    problems += [f"{p} is not stored{nearest(p, stored)}" for p in target if p not in stored]
    problems += [f"{p} is stored, but not in the experiment" for p in stored if p not in target]
    if problems:
        more = f" (and {len(problems) - 2} more)" if len(problems) > 2 else ""
        raise UserError(f"{file}: not a checkpoint of this experiment: "
                        f"{'; '.join(problems[:2])}{more}.")


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a committed step by path, verified; of random keys, their data.

    Args:
      folder: a run's `checkpoints` directory.
      step: a committed one.
    """
    import orbax.checkpoint as orbax

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kinds = {p: orbax.ArrayRestoreArgs(sharding=here) if dtype.startswith("key")
             else orbax.RestoreArgs(restore_type=np.ndarray)
             for p, (_, dtype) in verify(folder, step)["arrays"].items()}
    restored = orbax.PyTreeCheckpointer().restore(
        folder.absolute() / "arrays" / str(step) / "default",
        args=orbax.args.PyTreeRestore(restore_args=_nested(kinds)))
    flat: dict[str, Any] = traverse_util.flatten_dict(restored, sep="/")
    return {p: np.asarray(jax.random.key_data(x) if isinstance(x, jax.Array) else x)
            for p, x in flat.items()}


# Starting from another run's parameters.


def parameters(run: Path, step: str) -> tuple[int, dict[str, np.ndarray]]:
    """(step, arrays by path) of another run: "params/...", "mutable/...".

    Frozen parameters count as params, and an average, where one is kept, stands for them.

    Args:
      run: its directory.
      step: "best", "last" or a number.
    """
    import orbax.checkpoint as orbax

    folder = (run / "checkpoints").absolute()
    number = distributed.by_leader(lambda: select(run, step))
    try:
        manifest = distributed.by_leader(lambda: verify(folder, number))
    except ValueError as error:
        raise UserError(str(error)) from error
    wanted = {p: np.empty(shape, dtype) for p, (shape, dtype) in manifest["arrays"].items()
              if re.match(r"state/(params|frozen|mutable|ema)/", p)}
    tree = _nested(wanted)
    restored = orbax.PyTreeCheckpointer().restore(
        folder / "arrays" / str(number) / "default", args=orbax.args.PyTreeRestore(
            item=tree, partial_restore=True, restore_args=jax.tree.map(
                lambda _: orbax.RestoreArgs(restore_type=np.ndarray), tree)))
    found = traverse_util.flatten_dict(restored, sep="/")
    flat: dict[str, Any] = {p.removeprefix("state/"): x for p, x in found.items()}
    for old in ("frozen/", "ema/"):
        flat = {**{p: x for p, x in flat.items() if not p.startswith(old)},
                **{"params/" + p[len(old):]: x for p, x in flat.items() if p.startswith(old)}}
    return number, flat


def select(run: Path, step: str) -> int:
    """The number of the "best", "last" or given checkpoint of a run."""
    folder = run / "checkpoints"
    steps = committed(folder)
    if not steps:
        raise UserError(f"{run}: holds no checkpoint.")
    if step == "last":
        return steps[-1]
    if step == "best":
        best = best_step(folder, steps[-1])
        if best not in steps:
            raise UserError(f"{run}: has no best checkpoint (best.metric was None, or it is gone).")
        return int(best)
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(f"{run}: has no checkpoint {step!r}; it has {', '.join(map(str, steps))}, "
                        "'last' and 'best'.")
    return int(step)


def overlay(state: Any, init: "InitFrom") -> tuple[Any, str]:
    """(the state with parameters from another run, a line that says what was taken)."""
    assert init.path is not None
    run = Path(init.path).expanduser()
    number, stored = parameters(run, init.step)
    for pattern, replacement in init.rename:
        stored = {re.sub(pattern, replacement, p): x for p, x in stored.items()}
    stored.pop("", None)
    target = named(state)
    places = {re.sub(r"^(frozen|ema)/", "params/", p): p for p in target
              if re.match(r"(params|frozen|mutable)/", p)}
    fresh = {p for p in places if any(re.fullmatch(f, p) for f in init.fresh)}
    missing = [p for p in places if p not in stored and p not in fresh]
    if missing:
        raise UserError(f"init_from: {missing[0]} is not in step {number} of {run}"
                        f"{nearest(missing[0], stored)} ({len(missing)} missing in all); rename "
                        "it with init_from.rename or leave it new with init_from.fresh.")
    taken = {}
    for path, place in places.items():
        if path in fresh:
            continue
        x, old = stored[path], target[place]
        if x.shape != old.shape:
            raise UserError(f"init_from: {path} is {list(x.shape)} in {run}, and "
                            f"{list(old.shape)} here; init_from.fresh can leave it new.")
        taken[place] = distributed.put(x.astype(old.dtype), old.sharding)
        average = "ema/" + place.removeprefix("params/")
        if average in target:
            taken[average] = jax.numpy.copy(taken[place])
    unused = len(set(stored) - (set(places) - fresh))
    leaves = [taken.get(p, x) for p, x in target.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), (
        f"started from step {number} of {run}: {len(places) - len(fresh)} arrays taken, "
        f"{len(fresh)} fresh, {unused} unused")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).split(" [os_error_code=")[0] or type(error).__name__
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-175:]}"  # The reason comes last.


def write_atomically(path: Path, text: str) -> None:
    """The file has the old text or the new, also after a power failure."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
