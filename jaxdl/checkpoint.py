"""Checkpoints that can be trusted. Orbax writes the arrays; a manifest of ours commits them.

    checkpoints/arrays/STEP/    written by Orbax, asynchronously
    checkpoints/STEP.json       the commit: SHA-256 and size of every file, shape and type of every
                                array, and what the run wants to remember
    checkpoints/STEP.pending    arrays/STEP is ours and not committed yet
    checkpoints/quarantine/     what failed verification, or what we did not write

A step exists only if its manifest verifies. It is un-committed before its files are deleted, and
deleted only after a newer one is committed; the best one stays. Only this file knows Orbax.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxdl import __version__, distributed, quiet
from jaxdl.atomic import sync_folder, write_atomically
from jaxdl.errors import NoRoom, RunError, UserError, nearest
from jaxdl.parallel import bytes_of
from jaxdl.task import named

FORMAT = 1
NUMBER = "0|[1-9][0-9]*"  # how a step is written in the name of a file


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

        quiet.failing_saves()
        self._orbax = orbax
        self.folder, self.keep = folder.absolute(), keep
        self.arrays = self.folder / "arrays"
        self.set_aside = distributed.by_leader(self._open)  # lines that say what was, and where to
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
        # Where nobody closes it: before Python stops the threads that Orbax writes with. (Python
        # 3.12 starts none any more at this point, so that what is unfinished fails, with a line.)
        mine = weakref.ref(self)
        threading._register_atexit(lambda: mine() and mine()._leave())  # type: ignore

    def _leave(self) -> None:
        """At the end of the program: status 0 means that the last step is on disk."""
        try:
            self.close()
        except RunError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def _open(self) -> list[str]:
        try:
            self.arrays.mkdir(parents=True, exist_ok=True)
            return self._sweep()
        except OSError as error:
            raise NoRoom(f"{self.folder}: cannot be written ({error.strerror}).") from error

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return distributed.by_leader(lambda: committed(self.folder))

    def check_space(self, state: Any, copies: int) -> None:
        """Raises a UserError unless there is room for so many checkpoints of this state."""
        needed = copies * bytes_of(state)
        free = distributed.by_leader(lambda: shutil.disk_usage(self.folder).free)
        if free < needed:
            raise NoRoom(f"{self.folder}: {copies} checkpoints need {needed:,} bytes, {free:,} "
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
        if distributed.by_leader(lambda: self._remembered(step, meta)):
            return
        flat = named(state)
        needed = int(1.1 * bytes_of(state)) + (1 << 20)
        free = distributed.by_leader(lambda: shutil.disk_usage(self.folder).free)
        if free < needed:
            raise RunError(f"{self.folder}: {needed:,} bytes are needed to save step {step}, "
                            f"{free:,} are free; the earlier steps are intact.")
        manifest = {"format": FORMAT, "jaxdl": __version__, "jax": jax.__version__,
                    "step": step, "meta": dict(meta),
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
        sync_folder(self.arrays)
        self._write(step, manifest)
        (self.folder / f"{step}.pending").unlink()
        bests: dict[int, int | None] = {}
        for old in committed(self.folder):
            # What is not the manifest that was written neither counts nor is deleted.
            with contextlib.suppress(ValueError, UserError):
                meta = read_manifest(self.folder, old)["meta"]
                bests[old] = meta.get("progress", {}).get("best_step")
        kept = list(bests)[-self.keep:]
        # An older one may be what a kept one, if it must be fallen back to, calls the best.
        needed = {best, *kept, *(bests[s] for s in kept)}
        return [old for old in reversed(bests) if old not in needed]  # a best after its followers

    def _remembered(self, step: int, meta: Mapping[str, Any]) -> bool:
        """Whether a step is committed. Then the arrays are the same; what is known about them may
        be more by now."""
        try:
            manifest = read_manifest(self.folder, step)
        except ValueError:  # There is none, or a strange one in the place of ours.
            self._put_aside(step)
            return False
        if manifest["meta"] != json.loads(json.dumps(meta)):
            self._write(step, {**manifest, "meta": dict(meta)})
        return True

    def _write(self, step: int, manifest: dict[str, Any]) -> None:
        manifest["sha256"] = _seal(manifest)
        write_atomically(self.folder / f"{step}.json", json.dumps(manifest))

    def _delete(self, step: int) -> None:
        if distributed.leads():
            (self.folder / f"{step}.pending").touch()
            (self.folder / f"{step}.json").unlink()
            sync_folder(self.folder)
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
            if distributed.by_leader(lambda step=step: self._quarantine_after(step)):
                self._manager.reload()
            return state, meta, skipped
        if skipped:
            raise UserError(f"{self.folder}: no checkpoint is intact. {' '.join(skipped)}")
        return None

    def _quarantine_after(self, step: int) -> int:
        newer = [s for s in committed(self.folder) if s > step]
        for each in newer:
            self._put_aside(each)
        return len(newer)

    def _put_aside(self, step: int) -> None:
        for source in (self.folder / f"{step}.json", self.arrays / str(step)):
            _set_aside(self.folder, source)

    def _sweep(self) -> list[str]:
        """Deletes what a killed save or deletion of ours left; sets aside what is not ours, and
        says so."""
        done, lines = set(committed(self.folder)), []
        pending = {int(p.stem): p for p in self.folder.glob("*.pending")
                   if re.fullmatch(NUMBER, p.stem) and p.is_file() and not p.is_symlink()}
        for path in sorted(self.arrays.iterdir()):
            step = re.fullmatch(rf"({NUMBER})(\.orbax-checkpoint-tmp.*)?", path.name)
            if step and not step[2] and int(step[1]) in done:
                continue
            if (step and int(step[1]) in pending.keys() - done and path.is_dir()
                    and not path.is_symlink()):
                shutil.rmtree(path)
            else:
                _set_aside(self.folder, path)
                lines.append(f"{self.arrays}: {path.name!r} belongs to no committed step: moved to "
                             "quarantine")
        for path in pending.values():
            path.unlink()
        return lines


def _set_aside(folder: Path, path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    quarantine = folder / "quarantine"
    quarantine.mkdir(exist_ok=True)
    taken = [int(p.name.split("-")[0]) for p in quarantine.iterdir()
             if re.match("[0-9]+-", p.name)]
    # Cut, the name has room for its number.
    path.rename(quarantine / f"{max(taken, default=-1) + 1:04d}-{path.name[:60]}")


def committed(folder: Path) -> list[int]:
    """The committed steps of a `checkpoints` directory, in order."""
    try:  # A glob takes a folder that cannot be listed (for want of descriptors, say) for empty.
        names = os.listdir(folder) if folder.exists() else []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}).") from error
    return sorted(int(n[:-5]) for n in names if re.fullmatch(rf"({NUMBER})\.json", n))


def digest(folder: Path, sync: bool = False) -> dict[str, list[Any]]:
    """{relative path: [size, SHA-256]} of every file; links, pipes and devices are refused."""
    found: dict[str, list[Any]] = {}

    def unreadable(error: OSError) -> None:  # Left out, its files would never be missed.
        raise ValueError(f"{error.filename} cannot be listed ({error.strerror})") from error

    for root, folders, files in os.walk(folder, onerror=unreadable):
        for path in (Path(root), *(Path(root, name) for name in folders + files)):
            if path.is_symlink():
                raise ValueError(f"{path} is a symbolic link")
            if not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path} is neither a file nor a folder")
        for name in files:
            path = Path(root, name)
            with path.open("rb") as file:
                if sync:
                    os.fsync(file.fileno())
                found[str(path.relative_to(folder))] = [
                    path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
        if sync:
            sync_folder(Path(root))
    if not found:
        raise ValueError(f"{folder} holds no file")
    return found


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of a step; a ValueError if it is not what was written."""
    path = folder / f"{step}.json"
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("no regular file")
        manifest = json.loads(path.read_text())
        newer = manifest["format"] > FORMAT
        if not newer and manifest.pop("sha256") != _seal(manifest):
            raise ValueError("changed")
        if not newer:
            _check(manifest)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not the manifest that was written") from error
    if newer:
        raise UserError(f"{path}: written by a newer jaxdl (format {manifest['format']}; this one "
                        f"reads up to {FORMAT}).")
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """Raises an error unless what a manifest holds has the types that we write."""
    shapes = all(isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in shape)
                 for shape, dtype in dict(manifest["arrays"]).values())
    if not shapes or not isinstance(manifest["meta"], dict) or not dict(manifest["files"]):
        raise ValueError("other types than we write")


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content."""
    content = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def best_step(folder: Path, step: int) -> int | None:
    """Which step was the best when this one was saved; None if there was none."""
    try:
        best = read_manifest(folder, step)["meta"]["progress"]["best_step"]
        return best if isinstance(best, int) else None
    except (ValueError, KeyError, TypeError):
        return None  # A damaged one is passed over at restore, and says nothing here.


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
    _compare(stored, flat, folder / f"{step}.json", manifest.get("jaxdl", "0.1.0"))
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


def _compare(stored: Mapping[str, Any], target: Mapping[str, Any], file: Path,
             version: str) -> None:
    """Raises a UserError unless the stored arrays are those of the target."""
    problems = [f"{p} is stored as {stored[p][1]}{stored[p][0]}, the experiment has {x.dtype}"
                f"{list(x.shape)}" for p, x in target.items()
                if p in stored and stored[p] != [list(x.shape), str(x.dtype)]]
    problems += [f"{p} is not stored{nearest(p, stored)}" for p in target if p not in stored]
    problems += [f"{p} is stored, but not in the experiment" for p in stored if p not in target]
    if problems:
        more = f" (and {len(problems) - 2} more)" if len(problems) > 2 else ""
        by = "" if version == __version__ else f" (jaxdl {version} wrote it)"
        raise UserError(f"{file}: not a checkpoint of this experiment{by}: "
                        f"{'; '.join(problems[:2])}{more}.")


def arrays(folder: Path, step: int, pattern: str = ".*") -> dict[str, np.ndarray]:
    """The arrays of a committed step by path, verified; of random keys, their data.

    Args:
      folder: a run's `checkpoints` directory.
      step: a committed one.
      pattern: regex that a whole path, such as "state/params/head/kernel", must match.
    """
    import orbax.checkpoint as orbax

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    stored = distributed.by_leader(lambda: verify(folder, step))["arrays"]
    kinds = {p: orbax.ArrayRestoreArgs(sharding=here) if dtype.startswith("key")
             else orbax.RestoreArgs(restore_type=np.ndarray)
             for p, (_, dtype) in stored.items() if re.fullmatch(pattern, p)}
    place = folder.absolute() / "arrays" / str(step) / "default"
    handler: Any = orbax.PyTreeCheckpointHandler()
    headers: dict[str, Any] = traverse_util.flatten_dict(handler.metadata(place).tree, sep="/")
    for p, header in headers.items():
        if p in kinds:  # It is compared before memory is taken for what the header says.
            shape, (want, dtype) = list(header.shape), stored[p]
            more, chunk = math.prod(shape[len(want):]), math.prod(header.storage.chunk_shape)
            if shape[:len(want)] != want or more > (4 if dtype.startswith("key") else 1) or (
                    chunk > max(1, math.prod(shape))):
                raise ValueError(f"{place}: {p} is of the shape {shape}, in chunks of {chunk:,}; "
                                 f"expected {want}")
    restored = orbax.PyTreeCheckpointer().restore(place, args=orbax.args.PyTreeRestore(
        item=_nested(dict.fromkeys(kinds, 0)), partial_restore=True, restore_args=_nested(kinds)))
    flat: dict[str, Any] = traverse_util.flatten_dict(restored, sep="/")
    return {p: np.asarray(jax.random.key_data(x) if isinstance(x, jax.Array) else x)
            for p, x in flat.items()}


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
    if step not in map(str, steps):
        raise UserError(f"{run}: has no checkpoint {step!r}; it has {', '.join(map(str, steps))}, "
                        "'last' and 'best'.")
    return int(step)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _one_line(error: BaseException) -> str:
    """What an error says; of a long text the beginning and the end, where TensorStore tells why."""
    text = str(error).encode(errors="backslashreplace").decode()  # the names of files are any bytes
    text = re.split(r" \[(?:os_error_code|tensorstore_spec)=", " ".join(text.split()))[0]
    text = text or type(error).__name__
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-175:]}"
