"""A run is a directory that explains, and can repeat, what happened.

    config.json         the exact experiment, and whether a stand-in took the place of its data
    overrides.txt       the leaves that the command line changed, a line each
    environment.json    one entry a launch: versions, devices, command, git commit and diff
    metrics.jsonl       one flat object a line, with "step"
    checkpoints/        see checkpoint.py
    tensorboard/        the same numbers for TensorBoard
    tokenizer.json      and other files that the data wants to be kept with it
"""

import contextlib
import datetime
import inspect
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdl import __version__, config, distributed, environment
from jaxdl.atomic import write_atomically
from jaxdl.checkpoint import committed
from jaxdl.display import console
from jaxdl.errors import NoRoom, UserError, shown
from jaxdl.process import Lock
from jaxdl.sinks import Sink, open_sinks

FORMAT = 1


@dataclass(frozen=True)
class Recorded:
    """What config.json holds.

    Attributes:
      name: of the experiment.
      experiment: the tree as plain JSON.
      stand_in: "Digits in place of Cifar10", or None.
      fingerprint: of the data.
      expected: the docstring of the experiment file.
      code: digests of that file and of the user's own files that it uses.
    """

    name: str
    experiment: Any
    stand_in: str | None
    fingerprint: str | None
    expected: str
    code: Mapping[str, str] = field(default_factory=dict)


def read(folder: Path) -> Recorded | None:
    """What a run directory recorded; None if it is not one."""
    path = folder / "config.json"
    try:
        if not path.is_file():
            return None
        data = json.loads(path.read_text(), object_pairs_hook=_once)
        if not data["format"] <= FORMAT:
            raise UserError(f"{path}: written by a newer jaxdl (format {data['format']}; this one "
                            f"reads up to {FORMAT}).")
        data.setdefault("code", {})  # 0.1.0 had none
        kinds = inspect.get_annotations(Recorded)
        for name, kind in kinds.items():
            if not config.fits(data[name], kind):
                raise ValueError(f"{name}={shown(repr(data[name]))}: "
                                 f"{config.expected(data[name], kind)}")
        if data["name"] in ("", "..") or Path(data["name"]).name != data["name"]:
            raise ValueError(f"name={data['name']!r}: expected a name without folders")
        return Recorded(**{name: data[name] for name in kinds})
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"{shown(str(path))}: not the config.json of a run ({reason}).") from error


def write(folder: Path, record: Recorded) -> None:
    """Writes config.json."""
    data = {"format": FORMAT, "jaxdl": __version__, **{
        name: getattr(record, name) for name in ("name", "stand_in", "fingerprint", "expected")},
        "code": dict(record.code), "experiment": record.experiment}
    write_atomically(folder / "config.json", json.dumps(data, indent=1))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that is there twice would hide a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{shown(repr(twice))} is there twice")
    return found


def new_folder(name: str, kind: str = "") -> Path:
    """runs/NAME/DATE_TIME, not in use yet; before the date a word of what it holds, if any."""
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    stem = Path("runs") / name / f"{kind}{now}"
    folder, n = stem, 1
    while folder.exists():
        n += 1
        folder = stem.with_name(f"{stem.name}_{n}")
    return folder


def check_writable(folder: Path) -> None:
    """Raises a UserError unless a run can be written there. Nothing of the trial is left, so that
    it comes before data is fetched."""
    try:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NoRoom(f"--workdir={folder}: cannot be written ({error.strerror}).") from error


def newest(name: str) -> Path:
    """The run directory of this experiment that was written last."""
    found = [p.parent for p in Path("runs", name).glob("*/config.json")]
    if not found:
        raise UserError(f"there is no run in {Path('runs', name)}; --workdir=DIR names one.")
    return max(found, key=lambda p: (p / "config.json").stat().st_mtime)


class Run:
    """An open run directory: this process alone writes into it (of several, the leader).

    Args:
      folder: made if it does not exist.
      record: what config.json shall hold.
      overrides: leaves that the command line changed.
      accept_changes: go on although the directory holds a different experiment.
      modules: modules whose dataclasses config.json may name.
    """

    def __init__(self, folder: Path, record: Recorded, *, overrides: Mapping[str, Any],
                 accept_changes: bool = False, modules: Iterable[str] = ()) -> None:
        self.folder, self.record = folder, record
        self._overrides = overrides
        self._metrics: Any = None
        self._sinks: list[Sink] = []
        self._new = distributed.by_leader(lambda: self._claim(accept_changes, modules))

    def _claim(self, accept_changes: bool, modules: Iterable[str]) -> bool:
        """Locks the directory; whether it will hold another experiment than it did."""
        folder, record = self.folder, self.record
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():  # To write through a link is to write elsewhere.
                if not (path.is_dir() or (path.is_file() and not path.is_symlink())):
                    raise UserError(f"{path}: neither a file nor a folder; refused.")
            self._lock = Lock(folder)
        except OSError as error:
            raise NoRoom(f"--workdir={folder}: cannot be written ({error.strerror}).") from error
        try:
            old = read(folder)
            if old is None and _holds_more(folder):
                raise UserError(f"--workdir={folder}: is not empty and not a run directory.")
            kept = old is not None and committed(folder / "checkpoints")
            if kept and old is not None and old != record and not accept_changes:
                found = changes(old, record, modules)
                if found:
                    raise UserError(f"--workdir={folder}: holds another experiment ({found}). "
                                    "Choose another, or continue it so with --accept_changes.")
        except UserError:
            self._lock.release()
            raise
        return not kept or old is None or old.experiment != record.experiment

    @distributed.only_leader
    def start(self, step: int, devices: Iterable[Any], sinks: tuple[str, ...] = (),
              repeated: Iterable[str] = (), files: Mapping[str, bytes] | None = None) -> None:
        """Records the experiment and this launch, drops what was logged after `step`, and opens the
        sinks. Only now, when the checkpoint has turned out to be one of this experiment.

        Args:
          step: of the checkpoint, or 0.
          devices: that are used.
          sinks: names of further sinks.
          repeated: evaluators that will run at this very step; what they logged is dropped too.
          files: further ones to keep, by name.
        """
        record = self.record
        write(self.folder, record)
        for name, content in (files or {}).items():
            write_atomically(self.folder / name, content)
        if self._new:
            lines = [f"{path}={value}\n" for path, value in self._overrides.items()]
            write_atomically(self.folder / "overrides.txt", "".join(lines))
        path = self.folder / "environment.json"
        try:
            launches = list(json.loads(path.read_text())) if path.exists() else []
        except (ValueError, TypeError, RecursionError):  # torn by a kill of an older jaxdl, or
            launches = []  # edited: begin a new list
        now = environment.current(step, devices)
        if step and launches and (found := environment.changes(launches[-1], now)):
            console.print(f"warning: not as at the last launch: {'; '.join(found)}. What follows "
                          "may not be to the bit what would have followed.")
        write_atomically(path, json.dumps([*launches, now], indent=1))
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            text = metrics.read_text(errors="replace")
            write_atomically(metrics, "".join(_until(text, step, tuple(repeated))))
        self._metrics = metrics.open("a")
        self._sinks = open_sinks(("tensorboard", *sinks), self.folder, step)

    @distributed.only_leader
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same to every sink. NaN and infinities become null."""
        line: dict[str, Any] = {"step": step}
        line |= {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        if self.record.stand_in:
            line["stand_in"] = self.record.stand_in
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for sink in self._sinks:
            sink.write(step, values)

    @distributed.only_leader
    def sync(self) -> None:
        """Until the log is on disk."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    @distributed.only_leader
    def close(self) -> None:
        sinks, self._sinks = self._sinks, []
        with contextlib.suppress(OSError):  # A full disk has been told of already.
            for sink in sinks:
                sink.close()
            if self._metrics is not None:
                self._metrics.close()
        self._lock.release()


def _holds_more(folder: Path) -> bool:
    """Whether there is more than a run leaves that was killed as it began."""
    mine = [folder / name for name in ("LOCK", "config.json", "log.txt")]
    return any((path.parent == folder and path.name != "checkpoints") or not path.is_dir()
               for path in folder.rglob("*") if path not in mine)


def changes(old: Recorded, new: Recorded, modules: Iterable[str]) -> str:
    """How an experiment differs from the one that its directory holds, "" if it does not."""
    found = []
    if old.experiment != new.experiment:
        a = config.from_json(old.experiment, modules=modules)
        b = config.from_json(new.experiment, modules=modules)
        found = [f"{path}: {_short(x)} then, {_short(y)} now"
                 for path, x, y in config.differences(a, b)]
    if old.stand_in != new.stand_in:
        found.append(f"stand-in: {old.stand_in} then, {new.stand_in} now")
    elif old.fingerprint != new.fingerprint:
        found.append(f"content of the data: {old.fingerprint} then, {new.fingerprint} now")
    found += [f"the code of {path} has changed" for path, digest in new.code.items()
              if old.code.get(path, digest) != digest]
    return "; ".join(found)


def _until(text: str, step: int, repeated: tuple[str, ...]) -> list[str]:
    """The whole lines of a metrics.jsonl up to a step; a line torn by a kill is dropped."""
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
            again = values["step"] == step and any(k.split("/")[0] in repeated for k in values)
            if line.endswith("\n") and values["step"] <= step and not again:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return kept


def _short(value: Any) -> str:
    text = type(value).__name__ + "(...)" if config.is_node(value) else repr(value)
    return text if len(text) < 60 else text[:57] + "..."
