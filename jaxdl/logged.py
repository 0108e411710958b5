"""What a run directory says of its run, for pages. Needs neither the data nor the parameters."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl import checkpoint, record
from jaxdl.data.progress import progress
from jaxdl.errors import UserError
from jaxdl.page import finite


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A run as its directory has it.

    Attributes:
      folder: the run directory.
      name: short, and different from those of the other runs.
      record: config.json.
      curves: steps and values (NaN where there was none) of each metric, in order.
      launches: environment.json.
      overrides: overrides.txt.
      manifest: of the newest checkpoint, or {}.
      missing: lines that say what could not be read.
      touched: when the log was written last, seconds since 1970.
    """

    folder: Path
    name: str
    record: record.Recorded
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    launches: Sequence[Mapping[str, Any]]
    overrides: str
    manifest: Mapping[str, Any]
    missing: Sequence[str]
    touched: float

    @property
    def step(self) -> int:
        """The newest in the log."""
        return max((int(steps[-1]) for steps, _ in self.curves.values()), default=0)

    @property
    def steps(self) -> int:
        return int(finite(self.leaf("steps")) or 0)

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the checkpoint remembers: best value and step, whether it stopped early."""
        found = self.manifest.get("meta", {}).get("progress", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def over(self) -> bool:
        return self.step >= self.steps or bool(self.progress.get("stopped"))

    @property
    def status(self) -> str:
        if self.progress.get("stopped"):
            return f"stopped early at step {self.step:,} of {self.steps:,}"
        if self.over:
            return f"finished at step {self.step:,}"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.touched))
        return f"at step {self.step:,} of {self.steps:,}, log written last {when}"

    def leaf(self, path: str) -> Any:
        """A value of config.json; None if there is none."""
        node = self.record.experiment
        for name in path.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    def ranked(self) -> tuple[str | None, bool]:
        """(the metric that ranks checkpoints, whether more of it is better)."""
        metric = self.leaf("best.metric")
        return metric if isinstance(metric, str) else None, self.leaf("best.mode") != "min"

    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best of the metric that ranks, by the log."""
        metric, more = self.ranked()
        steps, values = self.curves.get(metric or "", (np.array([]), np.array([])))
        known = np.flatnonzero(np.isfinite(values))
        if not len(known):
            return None
        i = known[(values[known] if more else -values[known]).argmax()]
        return int(steps[i]), float(values[i])

    def median(self, metric: str) -> float | None:
        _, values = self.curves.get(metric, (None, np.array([])))
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else None

    def seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps, seconds of training until then), without compilation, evaluations and saves."""
        steps, rates = self.curves.get("train/examples_per_second", (np.array([]), np.array([])))
        batch = finite(self.leaf("batch_size")) or 1.
        with np.errstate(all="ignore"):
            took = np.diff(steps, prepend=0) * batch / rates
        return steps, np.cumsum(np.where(np.isfinite(took), took, 0))


class NothingYet(UserError):
    """A run that has logged no number so far."""


def read(folder: Path, name: str = "") -> Logged:
    """Reads a run directory; a UserError says why it is none, NothingYet that it is too early."""
    if (folder / "ledger.sqlite").is_file():
        raise UserError(f"report {folder}: a sweep; its page is {folder / 'report.html'}.")
    if not folder.is_dir():
        raise UserError(f"report {folder}: there is no such folder.")
    recorded = record.read(folder)
    if recorded is None:
        if (folder / "LOCK").is_file():  # It may still compile.
            raise NothingYet(f"report {folder}: nothing is recorded yet (no config.json).")
        raise UserError(f"report {folder}: not a run directory, it has no config.json.")
    path, missing = folder / "metrics.jsonl", []
    try:
        if not path.is_file():
            raise NothingYet(f"report {folder}: nothing is logged yet (no metrics.jsonl).")
        curves, touched = numbers(path), path.stat().st_mtime
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if not curves:
        raise NothingYet(f"report {folder}: nothing is logged yet (metrics.jsonl has no numbers).")
    launches: list[Mapping[str, Any]] = []
    try:
        launches = [x for x in json.loads((folder / "environment.json").read_text())
                    if isinstance(x, Mapping)]
    except (OSError, ValueError, TypeError, RecursionError):
        missing.append("environment.json cannot be read: versions and command are not known.")
    try:
        overrides = (folder / "overrides.txt").read_text(errors="replace")
    except OSError:
        overrides = ""
    manifest: Mapping[str, Any] = {}
    try:
        if steps := checkpoint.committed(folder / "checkpoints"):
            manifest = checkpoint.read_manifest(folder / "checkpoints", steps[-1])
    except (UserError, ValueError, OSError) as error:
        missing.append(f"Parameters are not listed: {error}.")
    return Logged(folder=folder, name=name or folder.name, record=recorded, curves=curves,
                  launches=launches, overrides=overrides, manifest=manifest, missing=missing,
                  touched=touched)


def numbers(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The numbers of a metrics.jsonl by name, in the order of their steps; of a step that is there
    twice the last. null is NaN. Lines that are none, torn by a kill, are passed over."""
    found: dict[str, dict[int, float]] = {}
    with path.open(errors="replace") as file, progress("reading the log", None) as advance:
        for i, line in enumerate(file, 1):
            if i % 10_000 == 0:
                advance(10_000)
            try:
                values = json.loads(line)
                step = values.pop("step")
                if type(step) is not int or not 0 <= step < 2 ** 53:
                    continue
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            for name, value in values.items():
                number = finite(value)
                if number is not None or value is None or isinstance(value, float):
                    found.setdefault(name, {})[step] = math.nan if number is None else number
    return {name: (np.array(sorted(curve)), np.array([curve[s] for s in sorted(curve)]))
            for name, curve in found.items()}


def envelope(steps: np.ndarray, values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """A curve of about so many points that looks the same: of each stretch the least and the
    greatest value, and one gap if it has any. The first and the last point stay."""
    if len(steps) <= points:
        return steps, values
    edges = np.unique(np.linspace(0, len(steps), max(2, points // 2) + 1).astype(int))
    keep = {0, len(steps) - 1}
    for start, stop in pairwise(edges):
        part = values[start:stop]
        known = np.isfinite(part)
        if not known.all():
            keep.add(start + int(known.argmin()))
        if known.any():
            keep |= {start + int(np.where(known, part, np.inf).argmin()),
                     start + int(np.where(known, part, -np.inf).argmax())}
    chosen = sorted(keep)
    return steps[chosen], values[chosen]
