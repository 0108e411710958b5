"""The `sweep` command: which trials there are, where they are trained, and what came of them.

    SWEEP/ledger.sqlite     which trials there are, and what has become of each (see ledger.py)
    SWEEP/sweep.json        what a process needs to know to train one of them
    SWEEP/trials/NUMBER/    a run directory for each trial
    SWEEP/groups/NUMBER/    checkpoints of trials that are trained together
    SWEEP/best              the best trial's run directory
    SWEEP/results.csv, report.html
"""

import contextlib
import csv
import dataclasses
import errno
import functools
import inspect
import io
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import statistics
import sys
import time
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from jaxdl import (
    clock,
    config,
    cost,
    display,
    environment,
    files,
    record,
    sweep,
    sweep_page,
    workers,
)
from jaxdl.atomic import write_atomically
from jaxdl.checkpoint import committed
from jaxdl.errors import (
    InUse,
    NoRoom,
    NotFinite,
    RunError,
    UsedAsStructure,
    UserError,
    nearest,
    out_of_memory,
    shown,
    told,
)
from jaxdl.experiment import Experiment
from jaxdl.ledger import DONE, ENDED, FAILED, PENDING, PRUNED, RUNNING, Entry, Ledger
from jaxdl.overrides import plain as plain_json
from jaxdl.overrides import told_apart
from jaxdl.process import Lock, Preempted, Signals, Watchdog
from jaxdl.sweep import Search, Sweep
from jaxdl.train import Program, better, splits, validate
from jaxdl.workers import Outcome, trial_folder

TURNS, MEASURED = 5, 0.15  # of each way of training, and seconds of each turn
DISK = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE
OPEN = 4  # data sets that are held open for the next trials
SPARE = 0.8  # of the free memory that a group of trials may take
FLUSH = 2.0  # seconds between two writes of results to the ledger


# What is declared.


def declared(command: Any) -> Sweep:
    """The sweep of the command line, else that of the experiment file, with its trials checked."""
    options = command.options
    if options.over:
        axes: dict[str, list[Any]] = {}
        for text in options.over:
            path, values = over(text, command)
            if path in axes:
                raise UserError(f"--over {shown(text)}: {path} is there twice.")
            axes[path] = values
        found: Any = Sweep(trials=sweep.grid(**axes))
    elif command.module is None or not hasattr(command.module, "sweep"):
        raise UserError(f"{command.name} has no sweep(); --over PATH=VALUE,VALUE declares one.")
    else:
        found = files.call(command.module, "sweep")
    if not isinstance(found, Sweep):
        found = Sweep(trials=found)
    changes = {name: value for name in ("metric", "mode", "prune", "rung")
               if (value := getattr(options, name)) is not None}
    found = dataclasses.replace(found, **changes)
    for name, hint in inspect.get_annotations(Sweep).items():
        if name != "trials" and not config.fits(getattr(found, name), hint):
            raise UserError(f"Sweep({name}={getattr(found, name)!r}): "
                            f"{config.expected(getattr(found, name), hint)}.")
    _check_metric(found, command.experiment)
    if isinstance(found.trials, Search):
        if options.seeds is not None:
            raise UserError("--seeds: repeats the trials of a list, and Optuna chooses these.")
        space = {}
        for path, axis in found.trials.space.items():
            bounds: Any = axis.values if isinstance(axis, sweep.Choice) else (axis.low, axis.high)  # type: ignore
            values = [checked(command.experiment, {path: value}, "the space of optuna_()")[path]
                      for value in bounds]
            space[path] = sweep.choice(*values) if isinstance(axis, sweep.Choice) else axis
        sampler_of(found.trials.sampler)
        return dataclasses.replace(found, trials=dataclasses.replace(found.trials, space=space))
    if isinstance(found.trials, (str, Mapping)) or not isinstance(found.trials, Iterable):
        raise UserError(f"sweep() returned a {type(found.trials).__name__}: expected a list of "
                        "trials, as grid() returns it.")
    trials: list[Any] = list(found.trials)
    for i, trial in enumerate(trials):
        if not isinstance(trial, Mapping):
            raise UserError(f"trial {i} is a {type(trial).__name__}: expected a mapping from paths "
                            "to values.")
    if options.seeds is not None:
        trials = sweep.repeat(trials, options.seeds)
    if not trials:
        raise UserError("the sweep is empty: it has no trials.")
    trials = [checked(command.experiment, trial, f"trial {i}") for i, trial in enumerate(trials)]
    seen: dict[str, int] = {}
    for i, trial in enumerate(trials):
        key = json.dumps({p: config.to_json(v) for p, v in sorted(trial.items())})
        if key in seen:
            raise UserError(f"trials {seen[key]} and {i} are the same: {described(trial)}.")
        seen[key] = i
    return dataclasses.replace(found, trials=trials)


def _check_metric(found: Sweep, experiment: Experiment) -> None:
    metric = found.metric or experiment.best.metric
    if metric is not None:
        name = metric.split("/")[0]
        if name not in experiment.evals:
            raise UserError(f"the metric {metric}: expected EVALUATOR/METRIC, with one of evals: "
                            f"{', '.join(experiment.evals) or 'none'}."
                            f"{nearest(name, experiment.evals)}")
    elif found.prune or isinstance(found.trials, Search):
        raise UserError("what is to be compared? Set best.metric, or --metric=EVALUATOR/NAME.")


def over(text: str, command: Any) -> tuple[str, list[Any]]:
    """PATH=VALUE,VALUE of the command line, each value typed as the flag --PATH would be. Whole
    numbers may be a range: seed=0:4 is 0, 1, 2, 3."""
    from jaxdl import cli

    path, equals, values = text.partition("=")
    path = path.removeprefix("--")
    if not equals or not values:
        raise UserError(f"--over {shown(text)}: expected PATH=VALUE,VALUE.")
    parts: list[str] = []
    depth = 0
    for char in values:  # Commas inside brackets belong to a tuple.
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1:] = [(parts[-1] if parts else "") + char]
    if len(parts) == 1 and (ends := parts[0].split(":"))[1:] and all(
            x.removeprefix("-").isdecimal() for x in ends) and len(ends) <= 3:
        if len(ends) == 3 and int(ends[2]) == 0:
            raise UserError(f"--over {shown(text)}: a step of 0 leads nowhere.")
        parts = [str(i) for i in range(*map(int, ends))]
        if not parts:
            raise UserError(f"--over {shown(text)}: the range is empty.")
    found = []
    for part in parts:
        try:
            _, typed = cli.parse_flags(command.experiment, command.options, [f"--{path}={part}"],
                                       f"{cli.program()} sweep")
        except UserError as error:
            raise UserError(f"--over {shown(text)}: {error}") from None
        if path.replace("-", "_") not in typed and path not in typed:
            raise UserError(f"--over {shown(text)}: {path} is an option, not a leaf of the "
                            "experiment.")
        found.append(next(iter(typed.values())))
    return path if path in typed else path.replace("-", "_"), found


def checked(experiment: Experiment, trial: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The trial with whole numbers made floats where a float is declared; a UserError for a path
    that does not exist and for a value of another type."""
    found = {}
    for path, value in trial.items():
        try:
            old, hint = config.get(experiment, str(path)), declared_type(experiment, str(path))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if hint is Any and old is not None:
            hint = type(old)
        value = value.item() if isinstance(value, np.generic) else value
        value = tuple(value) if isinstance(value, list) else value
        if not config.fits(value, hint):
            raise UserError(f"{name}: {path}={shown(repr(value))}: "
                            f"{config.expected(value, hint)}.")
        if type(value) is int and not _takes_int(hint):
            value = float(value)
        try:
            config.check(value, path, hint)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        found[path] = value
    for a, b in itertools.permutations(found, 2):
        if b.startswith(f"{a}."):
            raise UserError(f"{name}: {b} is a part of {a}, which the trial sets, too.")
    return found


def declared_type(experiment: Experiment, path: str) -> Any:
    """Of a node or leaf; of what is in a mapping or a tuple, that of its items."""
    parent, _, last = path.rpartition(".")
    node = config.get(experiment, parent) if parent else experiment
    hint = config.annotation(node, last)
    if hint is not Any or not parent:
        return hint
    above = declared_type(experiment, parent)
    for each in (above, *typing.get_args(above)):  # of "Optimizer | Mapping[str, Optimizer]"
        args = typing.get_args(each)
        if typing.get_origin(each) is Mapping and isinstance(node, Mapping):
            return args[1]
        if typing.get_origin(each) is tuple and isinstance(node, tuple):
            return args[0] if args[-1] is ... else args[int(last)]
    return Any


def _takes_int(hint: Any) -> bool:
    """Whether a whole number of this type is one, and not a float."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return any(type(a) is int for a in args)
    return hint in (int, Any) or any(map(_takes_int, args))


def described(trial: Mapping[str, Any]) -> str:
    """A trial in a line."""
    return ", ".join(f"{path}={plain(value)}" for path, value in trial.items()) or "no change"


def plain(value: Any) -> str:
    """A value, or plain JSON, as a table shows it; a sub-tree by the name of its class."""
    if config.is_node(value) and not isinstance(value, (dict, tuple)):
        return type(value).__name__
    return plain_json(value)


# The study.


@dataclasses.dataclass
class Prepared:
    """A trial that can be trained.

    Attributes:
      entry: of the ledger.
      experiment: what it trains.
      recorded: what its run directory records.
      overrides: by path.
    """

    entry: Entry
    experiment: Experiment
    recorded: record.Recorded
    overrides: Mapping[str, Any]


class Study:
    """A sweep while it runs: the ledger, the trials, and the table on the terminal.

    Args:
      folder: of the sweep.
      book: its open ledger.
      found: what was declared.
      command: that declared it.
      base: the experiment that is varied, with data that is here.
      stand_in: what stands in for what.
    """

    def __init__(self, folder: Path, book: Ledger, found: Sweep, command: Any, base: Experiment,
                 stand_in: str | None) -> None:
        self.folder, self.book, self.sweep, self.command = folder, book, found, command
        self.base, self.stand_in, self.options = base, stand_in, command.options
        self.metric = found.metric or base.best.metric
        self.mode = found.mode or base.best.mode
        self.entries: dict[int, Entry] = {e.number: e for e in book.trials()}
        self.history: dict[int, dict[int, float]] = defaultdict(dict)  # trial: step: metric
        self.fingerprints: dict[str, str] = {}
        self._dirty: set[int] = set()
        self._flushed = time.monotonic()
        for number, entry in self.entries.items():
            if entry.state == RUNNING:
                self.change(number, state=PENDING)
            entry.value = None  # The logs say it, by whatever is compared now.
            for step, values in logged(trial_folder(folder, number)):
                self.note(number, step, values)

    @property
    def structural(self) -> set[str]:
        """Paths of floats that turned out to be used as structure."""
        return set(self.book.get("structural") or ())

    def take_for_structure(self, paths: Sequence[str]) -> None:
        """From now on these floats (of the data, "transforms...") are structure."""
        found = {path for path in paths if not path.startswith("transforms")}
        if len(found) < len(paths):
            found |= {p for p, leaf in config.leaves(self.base) if p.startswith("data.")}
        self.book.set("structural", sorted(self.structural | found))
        self.say(f"note: {', '.join(sorted(found))}: the code asks this float a question, so that "
                 "each of its values is compiled by itself")

    def group(self, trials: Sequence[Prepared], way: str) -> int:
        """Records that trials are a group, and how they are trained; its number."""
        ways = self.book.get("ways") or {}
        number = len(ways)
        with self.book.at_once():
            self.book.set("ways", {**ways, str(number): way})
            for trial in trials:
                self.change(trial.entry.number, group=number)
        return number

    # Which trials there are.

    def declare(self) -> None:
        """Adds the declared trials that the ledger does not hold; others of it are an error."""
        if isinstance(self.sweep.trials, Search):
            for e in self.entries.values():
                if e.overrides.keys() != self.sweep.trials.space.keys():
                    raise UserError(f"{self.folder}: holds another sweep: its trial {e.number} "
                                    f"({described(e.overrides)}) is not of this space.")
            return
        have = {json.dumps(e.overrides, sort_keys=True): e.number for e in self.entries.values()}
        want = [{p: config.to_json(v) for p, v in t.items()} for t in self.sweep.trials]
        keys = [json.dumps(trial, sort_keys=True) for trial in want]
        if lost := [n for key, n in have.items() if key not in keys]:
            raise UserError(f"{self.folder}: holds another sweep: its trial {lost[0]} "
                            f"({described(self.entries[lost[0]].overrides)}) is not declared now.")
        with self.book.at_once():
            for key, trial in zip(keys, want, strict=True):
                if key not in have:
                    self._add(trial)

    def _add(self, overrides: Mapping[str, Any]) -> int:
        number = self.book.add(overrides)
        self.entries[number] = Entry(number, dict(overrides))
        return number

    def ask(self, most: int | None) -> list[Prepared]:
        """Trials to train now, at most so many; [] if there are none (any more, or until others
        have ended)."""
        while pending := self._pending(most):
            found = []
            for number in pending:
                try:
                    found.append(self.prepare(number))
                except Exception as error:  # What no leaf alone shows.
                    self.finish(number, failed(error, self.folder))
            if found:
                return found
        return []

    def _pending(self, most: int | None) -> list[int]:
        pending = [e.number for e in self.entries.values() if e.state == PENDING]
        search = self.sweep.trials
        if isinstance(search, Search) and not pending:
            running = sum(e.state == RUNNING for e in self.entries.values())
            count = min(search.together - running, search.n - len(self.entries))
            with self.book.at_once():
                for _ in range(min(count, count if most is None else most)):
                    pending.append(self._add(chosen(search, self)))
        return pending[:most]

    def prepare(self, number: int) -> Prepared:
        """The experiment of a trial, checked, and its run directory."""
        from jaxdl import parallel

        entry = self.entries[number]
        overrides = {p: config.from_json(v, modules=self.command.modules)
                     for p, v in entry.overrides.items()}
        experiment = config.replace(self.base, overrides)
        config.check(experiment)
        if self.options.executor not in ("ray", "slurm"):  # whose machines have other devices
            validate(experiment, parallel.arrange(experiment.mesh, experiment.rules))
        key = json.dumps(config.to_json(experiment.data))
        if key not in self.fingerprints:
            experiment.data.prepare()
            opened(experiment)
            self.fingerprints[key] = experiment.data.fingerprint()
        recorded = record.Recorded(
            self.command.name, config.to_json(experiment), self.stand_in, self.fingerprints[key],
            self.command.expected, self.command.code)
        place = trial_folder(self.folder, number)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "config.json").exists():
            record.write(place, recorded)
        return Prepared(entry, experiment, recorded, {**self.command.typed, **overrides})

    # What becomes of them.

    def change(self, number: int, **values: Any) -> None:
        """A change of the ledger that is on disk when this returns."""
        for name, value in values.items():
            setattr(self.entries[number], name, value)
        self.book.update(number, **values)

    def note(self, number: int, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers of a trial."""
        entry = self.entries[number]
        entry.step = max(entry.step, step)
        entry.results |= values
        name = (self.metric or "").split("/")[0]
        if self.metric not in values and any(k.split("/")[0] == name for k in values):
            raise RunError(f"the metric {self.metric}: the evaluator has no such metric."
                           f"{nearest(self.metric or '', values)}")
        if self.metric and (value := values.get(self.metric)) is not None:
            if math.isfinite(value):
                self.history[number][step] = value
            if better(value, entry.value, self.mode):
                entry.value = value
        self._dirty.add(number)

    def flush(self, now: bool = False) -> None:
        """Writes numbers to the ledger, not too often."""
        if self._dirty and (now or time.monotonic() - self._flushed > FLUSH):
            with self.book.at_once():
                for number in self._dirty:
                    e = self.entries[number]
                    self.book.update(number, step=e.step, value=e.value, results=e.results)
            self._dirty.clear()
            self._flushed = time.monotonic()

    def say(self, text: str) -> None:
        """A line for the user."""

    def show(self) -> None:
        """Shows how it stands."""

    def finish(self, number: int, outcome: Outcome) -> None:
        """A trial has ended, or its process has."""
        self.flush(now=True)
        entry = self.entries[number]
        state, reason = outcome.state, outcome.reason
        if state == "died":
            attempts = entry.attempts + 1
            state = FAILED if attempts > self.options.retries else PENDING
            self.change(number, state=state, reason=reason, attempts=attempts)
        elif state == "left":
            self.change(number, state=PENDING)
        else:
            self.change(number, state=state, reason=reason)

    def steps(self, number: int) -> int:
        """That a trial trains."""
        return int(self.entries[number].overrides.get("steps", self.base.steps))

    # Pruning.

    def prunes(self, number: int, step: int) -> str:
        """Why to end a trial after its results of this step, or ""."""
        if self.sweep.prune is None or step >= self.steps(number):
            return ""
        mine = self.history[number].get(step)
        if mine is None:
            return ""
        sign = 1 if self.mode == "max" else -1
        first = self.sweep.rung or min(self.history[number])
        if self.sweep.prune == "median":
            others = [max(sign * v for s, v in found.items() if s <= step)
                      for n, found in self.history.items() if n != number and step in found]
            best = max(sign * v for s, v in self.history[number].items() if s <= step)
            if step >= first and len(others) >= 4 and best < (middle := statistics.median(others)):
                return f"median: {sign * middle:.6g} of {len(others)} others at step {step:,}"
            return ""
        rung = first
        while rung * self.sweep.factor <= step:
            rung *= self.sweep.factor
        if step < rung or any(rung <= s < step for s in self.history[number]):
            return ""  # Between two rungs.
        there = sorted((sign * v for found in self.history.values() if (
            at := min((s for s in found if s >= rung), default=None)) is not None
            for v in [found[at]]), reverse=True)
        kept = max(1, len(there) // self.sweep.factor)
        if sign * mine < there[kept - 1]:
            return (f"asha: not among the best {kept} of {len(there)} at the rung of step "
                    f"{rung:,}")
        return ""


_opened: dict[str, Callable[[str], Any]] = {}


def opened(experiment: Experiment) -> Callable[[str], Any]:
    """`splits(experiment)`; experiments with equal data and evaluators share it, since each holds
    the data in memory."""
    key = json.dumps([config.to_json(experiment.data), config.to_json(experiment.evals)])
    if key not in _opened:
        _opened[key] = splits(experiment)
        while len(_opened) > OPEN:
            _opened.pop(next(iter(_opened)))
    return _opened[key]


def logged(folder: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, numbers) of each line of a run's log that begins at this byte or later."""
    with contextlib.suppress(OSError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(start)
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                values = json.loads(line)
                yield int(values.pop("step")), {
                    k: v for k, v in values.items() if isinstance(v, (int, float)) or v is None}


def whole_lines(path: Path, start: int) -> int:
    """Bytes of a log up to the end of its last whole line. It is read from `start` on, unless it
    has become shorter."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < start:
                start = 0
            file.seek(start)
            return start + file.read().rfind(b"\n") + 1
    except OSError:
        return 0


def sampler_of(name: str) -> Callable[..., Any]:
    """Optuna's class of a sampler; a UserError if it, or what it needs, is not installed."""
    try:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if name == "gp":
            import torch  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise UserError(f"optuna_(sampler={name!r}): {error}; pip install 'jaxdl[sweep]'"
                        f"{' torch' if name == 'gp' else ''}.") from None
    return {"tpe": functools.partial(optuna.samplers.TPESampler, constant_liar=True),
            "random": optuna.samplers.RandomSampler, "gp": optuna.samplers.GPSampler}[name]


def chosen(search: Search, study: Study) -> dict[str, Any]:
    """What Optuna chooses next, as plain JSON. Its study is made anew from the ledger each time,
    so that a killed sweep goes on with the same choices."""
    import optuna

    space: dict[str, Any] = {}
    for path, axis in search.space.items():
        if isinstance(axis, sweep.Choice):
            space[path] = optuna.distributions.CategoricalDistribution(
                [json.dumps(config.to_json(v)) for v in axis.values])
        elif isinstance(axis, sweep.Integers):
            space[path] = optuna.distributions.IntDistribution(axis.low, axis.high, log=axis.log)
        elif isinstance(axis, sweep.Uniform):
            space[path] = optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
    seed = search.draws * 100_003 + len(study.entries)
    made = optuna.create_study(direction="maximize" if study.mode == "max" else "minimize",
                               sampler=sampler_of(search.sampler)(seed=seed))
    states = {DONE: optuna.trial.TrialState.COMPLETE, PRUNED: optuna.trial.TrialState.PRUNED}
    for entry in study.entries.values():
        state = states.get(entry.state, optuna.trial.TrialState.FAIL if entry.state == FAILED
                           else optuna.trial.TrialState.RUNNING)
        if entry.value is None and entry.state in states:
            state = optuna.trial.TrialState.FAIL
        made.add_trial(optuna.trial.create_trial(
            state=state, value=entry.value if state == states[DONE] else None,
            params={p: json.dumps(v) if isinstance(search.space[p], sweep.Choice) else v
                    for p, v in entry.overrides.items()}, distributions=space,
            intermediate_values=study.history[entry.number] if state == states[PRUNED] else {}))
    params = made.ask(space).params
    return {p: json.loads(v) if isinstance(search.space[p], sweep.Choice) else v
            for p, v in params.items()}


# Training in this process.


class Heard:
    """Watches a trial, wherever it is trained. That it shall end is said by a file in its run
    directory, which outlives a kill.

    Args:
      folder: of the trial.
      steps: that it trains.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps

    @property
    def pruned(self) -> str:
        """Why it has been ended early, or ""."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / workers.PRUNE).read_text()
        return ""

    def trained(self, step: int, values: Mapping[str, float]) -> None:
        if (self.folder / workers.LEAVE).exists():
            (self.folder / workers.LEAVE).unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGTERM)  # which the loop honours as soon as it can

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def over(self, step: int) -> bool:
        return bool(step < self.steps and self.pruned)

    def close(self) -> None:
        pass


class Told(Heard):
    """Tells a study of a trial that is trained in this process."""

    def __init__(self, study: Study, number: int) -> None:
        super().__init__(trial_folder(study.folder, number), study.steps(number))
        self.study, self.number = study, number

    def trained(self, step: int, values: Mapping[str, float]) -> None:
        self.study.note(self.number, step, values)
        self.study.flush()

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        self.study.note(self.number, step, values)

    def over(self, step: int) -> bool:
        if not self.pruned and (reason := self.study.prunes(self.number, step)):
            write_atomically(self.folder / workers.PRUNE, reason)
        return super().over(step)


class Runner:
    """Trains trials in this process; those of one structure share their compiled functions.

    Args:
      accept_changes: continue trials whose directories hold something else.
      sinks: names of further sinks.
      grace: seconds that leaving may take.
      modules: whose dataclasses a record may name.
      stuck_after: seconds without progress after which the process ends.
    """

    def __init__(self, *, accept_changes: bool, sinks: tuple[str, ...], grace: float | None,
                 modules: tuple[str, ...], stuck_after: float | None) -> None:
        self.accept_changes, self.sinks, self.grace = accept_changes, sinks, grace
        self.modules, self.stuck_after = modules, stuck_after
        self._programs: dict[str, Program] = {}

    def watchdog(self) -> Watchdog:
        """For the time in which something is trained."""
        return Watchdog(self.stuck_after, lambda text: print(
            f"error: {text}", file=sys.stderr, flush=True))

    def forget(self) -> None:
        """Frees the program that is kept, and the data that it holds on the device."""
        self._programs.clear()

    def run(self, folder: Path, trial: Prepared) -> record.Run:
        """The open run directory of a trial."""
        return record.Run(folder, trial.recorded, overrides=trial.overrides,
                          accept_changes=self.accept_changes, modules=self.modules)

    def program(self, experiment: Experiment, source: Any, devices: Any, *, fresh: bool = False,
                poll: Callable[[], None] = lambda: None) -> Program:
        """The program of an experiment, from one of the same structure if there was one."""
        from jaxdl import together

        found = together.free(experiment, opened(experiment)) | {"seed"}
        key = together.structure(experiment, found)
        if (old := self._programs.get(key)) is not None:
            with contextlib.suppress(UsedAsStructure):
                return old.of(experiment, source, fresh=fresh)
        self._programs.clear()  # Each holds the data on the device.
        made = Program(experiment, source, devices, fresh=fresh, poll=poll)
        self._programs[key] = made
        return made

    def alone(self, folder: Path, trial: Prepared, watcher: Any) -> Outcome:
        """Trains one trial in its run directory.

        Raises:
          Preempted: the process was asked to leave; everything is saved.
          RunError: what is no fault of the trial's: a disk that is full, say.
        """
        from jaxdl.train import fit

        with logging_to(folder), self.watchdog() as watchdog:
            try:
                fit(trial.experiment, self.run(folder, trial), sinks=self.sinks, grace=self.grace,
                    watchdog=watchdog, watcher=watcher, compile=self.program,
                    opened=opened(trial.experiment))
            except NotFinite as error:
                return Outcome(FAILED, str(error).removeprefix(f"{folder}: "))
            except Exception as error:
                return failed(error, folder)
        pruned = watcher.pruned
        return Outcome(PRUNED, pruned) if pruned else Outcome(DONE)


def failed(error: Exception, folder: Path) -> Outcome:
    """What a trial's own code or values raised; what is no fault of theirs is raised again.

    Args:
      error: what was raised.
      folder: of the trial, or of the sweep.
    """
    found = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(found, OSError):
        place = str(found.filename or "")
        if found.errno in DISK or (place and Path(place).is_relative_to(folder)):
            raise error
        return Outcome(FAILED, str(error) if isinstance(error, UserError) else told(found))
    if isinstance(error, (NoRoom, InUse, RunError)):
        raise error
    if isinstance(error, UserError):
        return Outcome(FAILED, str(error))
    return Outcome(FAILED, str(out_of_memory(error) or told(error)))


@contextlib.contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """What a run prints goes to log.txt in its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    old = display.console._file  # None: whatever sys.stdout is
    with (folder / "log.txt").open("a") as file:
        display.console.file = file
        try:
            yield
        finally:
            display.console._file = old


_runners: dict[str, Runner] = {}


def work(folder: Path, number: int, job: Mapping[str, Any]) -> Outcome:
    """Trains one trial of a sweep that another process leads.

    Args:
      folder: of the sweep.
      number: of the trial.
      job: what its directory shall record, and the leaves that were changed.
    """
    from jaxdl import allocator, cli

    allocator.keep_memory()
    place = trial_folder(folder, number)
    try:
        facts = json.loads((folder / "sweep.json").read_text())
        modules: tuple[str, ...] = ()
        if facts["file"] is not None:
            modules = tuple(environment.users(files.load(Path(facts["file"]))))
        recorded = record.Recorded(**job["recorded"])
        experiment = cli.rebuilt(recorded, place, modules)
        changes = {p: config.from_json(v, modules=modules) for p, v in job["overrides"].items()}
        runner = _runners.setdefault(str(folder), Runner(
            accept_changes=facts["accept_changes"], sinks=tuple(facts["sinks"]),
            grace=facts["grace"], modules=modules, stuck_after=facts["stuck_after"]))
        experiment.data.prepare()
        trial = Prepared(Entry(number, {}), experiment, recorded, changes)
        while True:
            try:
                return runner.alone(place, trial, Heard(place, experiment.steps))
            except InUse:  # A job that outlived the command which started it: it goes on.
                time.sleep(1)
    except Preempted as error:
        return Outcome("left", str(error))
    except (UserError, RunError, OSError) as error:
        return Outcome("stopped", str(error))


# The ways of training.


def train_here(study: Study, runner: Runner) -> None:
    """Trains trials in this process, one by one or many at once."""
    while trials := study.ask(None):
        for group in grouped(study, trials):
            numbers = [trial.entry.number for trial in group]
            kept = study.entries[numbers[0]].group
            ways = study.book.get("ways") or {}
            if kept is not None and ways.get(str(kept)) == "vmap":
                train_together(study, runner, kept, group)
            elif kept is not None or len(group) == 1 or study.options.executor == "sequential":
                one_by_one(study, runner, group)
            else:
                choose(study, runner, group)


def grouped(study: Study, trials: Sequence[Prepared]) -> list[list[Prepared]]:
    """The trials that could be trained at once: those that were so already, and those of one
    structure."""
    from jaxdl import together

    groups: dict[Any, list[Prepared]] = {}
    for trial in trials:
        if trial.entry.group is not None:
            groups.setdefault(trial.entry.group, []).append(trial)
            continue
        leaves = together.free(trial.experiment, opened(trial.experiment))
        # One that has been trained alone goes on alone.
        alone = trial.experiment.parallel == "pmap" or bool(committed(
            trial_folder(study.folder, trial.entry.number) / "checkpoints"))
        key = (together.structure(trial.experiment, leaves - study.structural),
               trial.entry.number if alone else None)
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


def one_by_one(study: Study, runner: Runner, group: Sequence[Prepared]) -> None:
    if group and group[0].entry.group is None:
        study.group(group, "sequential")
    for trial in group:
        number = trial.entry.number
        study.change(number, state=RUNNING)
        began = time.monotonic()
        watcher = Told(study, number)
        try:
            outcome = runner.alone(trial_folder(study.folder, number), trial, watcher)
        finally:
            study.change(number, seconds=trial.entry.seconds + time.monotonic() - began)
        study.finish(number, outcome)


def choose(study: Study, runner: Runner, group: list[Prepared]) -> None:
    """Begins with trials of one structure: all at once, as many as memory holds, or one by one."""
    from jaxdl import parallel

    if len(group) == 1:
        return one_by_one(study, runner, group)
    devices = parallel.arrange(group[0].experiment.mesh, group[0].experiment.rules)
    trials = [(t.experiment, opened(t.experiment)("train")) for t in group]
    half = -(-len(group) // 2)
    try:
        with logging_to(study.folder / "groups"):
            program = Program(*trials[0], devices, trials=trials)
            needed, free = memory_of(program), free_memory(devices)
            if free is not None and needed > free:
                raise MemoryError(f"{len(group)} trials at once need {needed / 1e9:.1f} GB, "
                                  f"{free / 1e9:.1f} are free")
            way, rates = "vmap", [0., 0.]
            if study.options.executor == "auto":
                before = cost.memory_peak()
                rates = rates_of([program, runner.program(*trials[0], devices)])
                way = "vmap" if rates[0] >= rates[1] else "sequential"
                # XLA does not count what its libraries take: for convolutions that become grouped
                # ones, many times as much.
                taken = cost.memory_peak() - before
                if way == "vmap" and free is not None and taken > free:
                    raise MemoryError(f"{len(group)} trials at once took {taken / 1e9:.1f} GB, of "
                                      f"{free / 1e9:.1f} that were free")
    except UsedAsStructure as error:
        study.take_for_structure(error.paths)
        for part in grouped(study, group):
            choose(study, runner, part)
        return None
    except Exception as error:
        if (short := out_of_memory(error)) is not None:
            study.say(f"note: {short}; so {half} at once")
            program = None
            for part in (group[:half], group[half:]):
                choose(study, runner, part)
            return None
        failed(error, study.folder)  # A full disk ends here. A model that cannot be built,
        study.say(f"note: one by one, since not at once: {told(error)}")  # each trial tells of.
        return one_by_one(study, runner, group)
    if way == "sequential":
        del program
    else:
        runner.forget()
    if study.options.executor == "auto":
        study.say(f"{len(group)} trials: {rates[0]:,.0f} trial-steps a second at once, "
                  f"{rates[1]:,.0f} one by one; so {'at once' if way == 'vmap' else 'one by one'}")
    number = study.group(group, way)
    if way == "vmap":
        return train_together(study, runner, number, group, program)
    return one_by_one(study, runner, group)


def memory_of(program: Program) -> int:
    """Bytes that training with a program takes, besides what is shared with everything else."""
    from jaxdl import parallel

    found = program.compile().result().memory_analysis()
    state = parallel.bytes_of(program.target.state)  # kept once more: of the best step
    if found is None:
        return 4 * state
    return state + found.temp_size_in_bytes + found.argument_size_in_bytes + max(
        found.output_size_in_bytes - found.alias_size_in_bytes, 0)


def free_memory(devices: Any) -> int | None:
    """Bytes of each device, or of the host, that trials may take; None if it is not known."""
    found = [stats["bytes_limit"] - stats.get("bytes_in_use", 0)
             for device in devices.mesh.devices.flat
             if "bytes_limit" in (stats := device.memory_stats() or {})]
    free = min(found) if found else cost.free_memory()
    return None if free is None else int(SPARE * free)


def rates_of(programs: Sequence[Program]) -> list[float]:
    """Trial-steps a second of each, measured in turns, since others may use the machine, too."""
    import jax

    from jaxdl.data.loader import ahead

    carries = [p.init(p.knobs) for p in programs]
    streams = [ahead(p.source, p.plan(0, p.experiment.steps)) for p in programs]
    rates: list[list[float]] = [[] for _ in programs]

    def dispatch(i: int) -> int:
        batches = list(itertools.islice(streams[i], programs[i].fused))
        if batches:
            carries[i] = jax.block_until_ready(programs[i].advance(carries[i], batches))
        return len(batches) * max(1, len(programs[i].trials))

    for turn in range(-1, TURNS):  # The first one compiles.
        for i, found in enumerate(rates):
            began, done, more = time.perf_counter(), 0, 1
            while more and time.perf_counter() < began + MEASURED * (turn >= 0):
                done += (more := dispatch(i))
            if turn < 0:
                dispatch(i)
            elif done:
                found.append(done / (time.perf_counter() - began))
    # Of a trial that is over before it can be measured, the first way is as good as another.
    return [statistics.median(found) if found else math.inf for found in rates]


def train_together(study: Study, runner: Runner, number: int, group: Sequence[Prepared],
                   program: Program | None = None) -> None:
    """Trains a group of trials in one compiled step. If their code fails in it, one by one: then
    each tells of itself."""
    try:
        train_at_once(study, runner, number, group, program)
    except Exception as error:
        failed(error, study.folder)
        study.say(f"note: one by one, since not at once: {out_of_memory(error) or told(error)}")
        study.book.set("ways", {**study.book.get("ways"), str(number): "sequential"})
        one_by_one(study, runner, [t for t in group if t.entry.state not in ENDED])
    shutil.rmtree(study.folder / "groups" / f"{number:04d}" / "checkpoints", ignore_errors=True)


def train_at_once(study: Study, runner: Runner, number: int, group: Sequence[Prepared],
                  program: Program | None) -> None:
    from jaxdl import parallel, together

    # A group is whole or not at all: of those that have ended, the state is there too.
    whole = [study.prepare(e.number) for e in study.entries.values() if e.group == number]
    going = {trial.entry.number for trial in group}
    began = time.monotonic()
    members: list[Any] = []
    trials: list[tuple[Experiment, Any]] = []
    devices = parallel.arrange(group[0].experiment.mesh, group[0].experiment.rules)
    folder = study.folder / "groups" / f"{number:04d}"

    def ended(trial: Prepared, watcher: Told, why: str) -> None:
        share = (time.monotonic() - began) / len(group)
        study.change(trial.entry.number, seconds=trial.entry.seconds + share)
        pruned = watcher.pruned
        study.finish(trial.entry.number, Outcome(FAILED, why) if why else
                     Outcome(PRUNED, pruned) if pruned else Outcome(DONE))

    with (contextlib.ExitStack() as stack, Signals(grace=runner.grace) as signals,
          runner.watchdog() as watchdog):
        stack.enter_context(logging_to(folder))
        for trial in whole:
            source, watcher = opened(trial.experiment), Told(study, trial.entry.number)
            going_on = trial.entry.number in going
            place = trial_folder(study.folder, trial.entry.number)
            run = runner.run(place, trial) if going_on else None
            if run is not None:
                stack.callback(run.close)
            members.append(together.Member(
                number=trial.entry.number, experiment=trial.experiment, opened=source, run=run,
                watcher=watcher, ended=functools.partial(ended, trial, watcher),
                over=not going_on))
            trials.append((trial.experiment, source("train")))
        with study.book.at_once():
            for trial in group:
                study.change(trial.entry.number, state=RUNNING)
        if program is None:
            program = Program(*trials[0], devices, fresh=True, trials=trials, poll=signals.poll)
        together.fit(members, folder, program, signals, sinks=runner.sinks, watchdog=watchdog)


def train_elsewhere(study: Study, engine: workers.Engine, grace: float | None) -> None:
    """Trains trials in other processes, each in its own run directory, from where it was."""
    running: dict[int, float] = {}  # trial: since when
    read: dict[int, int] = {}  # bytes of its log
    judged: dict[int, int] = {}  # the step up to which its results were compared

    def begin(trial: Prepared) -> None:
        number = trial.entry.number
        place = trial_folder(study.folder, number)
        place.mkdir(parents=True, exist_ok=True)
        (place / workers.LEAVE).unlink(missing_ok=True)
        study.change(number, state=RUNNING)
        running[number] = time.monotonic()
        engine.start(number, {
            "recorded": dataclasses.asdict(trial.recorded),
            "overrides": {p: config.to_json(v) for p, v in trial.overrides.items()}})

    def finish(seconds: float, leaving: bool = False) -> None:
        for number, outcome in engine.ended(seconds):
            if leaving and outcome.state == "died":  # of the signal, before there was anything
                outcome = Outcome("left")
            look(number)
            entry = study.entries[number]
            study.change(number, seconds=entry.seconds + time.monotonic() - running.pop(number))
            if outcome.state == "stopped":  # not by itself: a full disk, a mistake that all share
                raise RunError(f"trial {number}: {outcome.reason}")
            study.finish(number, outcome)

    def look(number: int) -> None:
        place = trial_folder(study.folder, number)
        size = whole_lines(place / "metrics.jsonl", begin := read.get(number, 0))
        if size == begin:
            return
        if size < begin:  # A trial that began again has dropped some.
            begin = 0
        read[number] = size
        for step, values in logged(place, begin):
            study.note(number, step, values)
            if step in study.history[number] and step > judged.get(number, 0):
                judged[number] = step
                reason = study.prunes(number, step)
                if reason and not (place / workers.PRUNE).exists():
                    write_atomically(place / workers.PRUNE, reason)

    with contextlib.closing(engine), Signals() as signals:
        signals.begun = True
        try:
            while True:
                signals.poll()
                while len(running) < engine.places and (more := study.ask(1)):
                    begin(more[0])
                if not running:
                    return
                finish(0.5)
                for number in list(running):
                    look(number)
                study.flush()
                study.show()
        except Preempted:
            engine.leave()
            until = time.monotonic() + (grace or 300)
            while running and time.monotonic() < until:
                finish(0.5, leaving=True)
            study.flush(now=True)
            raise


# The command.


def run(command: Any) -> int:
    """Trains the trials of a sweep, or continues one."""
    from jaxdl import allocator, cli, distributed, sinks

    options = command.options
    if options.resume and options.workdir:
        raise UserError("--resume and --workdir exclude each other.")
    if distributed.announced(os.environ):
        raise UserError("sweep runs in one process, which starts others: --executor=processes.")
    sinks.check(options.sinks)
    found = declared(command)
    folder = Path(newest(command.name) if options.resume else options.workdir or record.new_folder(
        command.name, "sweep-"))
    record.check_writable(folder)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # Each trial has a log and a lock.
    allocator.keep_memory()
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    try:
        if not (folder / "ledger.sqlite").exists() and any(
                path.name != "LOCK" for path in folder.iterdir()):
            raise UserError(f"--workdir={folder}: is not empty and not a sweep.")
        with contextlib.closing(Ledger(folder / "ledger.sqlite")) as book:
            old = book.get("record")
            base, stand_in = cli.with_data(
                command, record.Recorded(**old) if old else None, options.strict_data)
            return Lead(folder, book, found, command, base, stand_in)()
    finally:
        lock.release()


def newest(name: str) -> Path:
    """The sweep of this experiment that was written last."""
    found = [path for path in Path("runs", name).glob("*/ledger.sqlite")
             if (path.parent / "trials").is_dir()]
    if not found:
        raise UserError(f"there is no sweep in {Path('runs', name)}; --workdir=DIR names one.")
    return max(found, key=lambda path: path.stat().st_mtime).parent


class Lead(Study):
    """A study on the terminal: it is checked, trained, shown, and written down."""

    def __call__(self) -> int:
        self.check()
        engine = self.engine()
        self.declare()
        self.console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        todo = sum(e.state not in ENDED for e in self.entries.values())
        total = (self.sweep.trials.n if isinstance(self.sweep.trials, Search)
                 else len(self.entries))
        self.total = total
        done = len(self.entries) - todo
        self.say(f"{self.command.name}: sweep of {total} trials in {self.folder}"
                 + (f", {done} of them have ended" if done else ""))
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self._shown = 0.0
        try:
            with contextlib.ExitStack() as stack:
                if self.console.is_terminal:
                    stack.enter_context(self.live)
                self.train(engine)
        except Preempted as signal:
            self.flush(now=True)
            name = str(signal).split(":")[0]
            raise Preempted(f"{name}: saved; continue with --workdir={self.folder}") from None
        finally:
            self.flush(now=True)
            with contextlib.suppress(OSError):  # of a full disk has been told
                self.write()
        self.console.print(self.table(len(self.entries)))
        for line in self.summary():
            self.console.print(line)
        return int(all(e.state == FAILED for e in self.entries.values()))

    def check(self) -> None:
        """That this is the sweep that the folder holds, and that it can be compared."""
        now = record.Recorded(self.command.name, config.to_json(self.base), self.stand_in,
                              self.base.data.fingerprint(), self.command.expected,
                              self.command.code)
        old = self.book.get("record")
        if old is not None and record.Recorded(**old) != now and not self.options.accept_changes:
            changes = record.changes(record.Recorded(**old), now, self.command.modules)
            if changes:
                raise UserError(f"--workdir={self.folder}: holds a sweep of another experiment "
                                f"({changes}). Choose another, or continue it so with "
                                "--accept_changes.")
        self.book.set("record", dataclasses.asdict(now))
        self.facts()
        if self.stand_in:  # What was declared for the data itself may not exist in it.
            trials = self.sweep.trials
            trials = [dict.fromkeys(trials.space)] if isinstance(trials, Search) else trials
            for path in dict.fromkeys(p for t in trials for p in t if p.startswith("data.")):
                try:
                    config.get(self.base, path)
                except UserError as error:
                    raise UserError(f"{error} The data is a stand-in ({self.stand_in}), which has "
                                    "no such leaf.") from None

    def facts(self) -> None:
        """What a process needs to know that trains one of the trials, and who reads the results."""
        file = None if self.command.module is None else str(
            Path(self.command.module.__file__).resolve())
        chosen = {name: value for name in ("seeds", "metric", "mode", "prune", "rung")
                  if (value := getattr(self.options, name)) is not None}
        flags = [*(f"--over={over}" for over in self.options.over),
                 *(f"--{name}={value}" for name, value in (chosen | self.command.typed).items())]
        write_atomically(self.folder / "sweep.json", json.dumps({
            "name": self.command.name, "flags": flags, "expected": self.command.expected,
            "metric": self.metric,
            "mode": self.mode, "data": type(self.base.data).__name__, "stand_in": self.stand_in,
            "file": file, "sinks": self.options.sinks, "grace": self.options.preempt_grace,
            "stuck_after": self.options.stuck_after,
            "accept_changes": self.options.accept_changes}, indent=1))

    def engine(self) -> workers.Engine | None:
        """Where trials are trained; None for this process."""
        options, folder = self.options, self.folder.absolute()
        count = options.workers or len(os.sched_getaffinity(0))
        if options.executor == "processes":
            return workers.Processes(folder, count)
        if options.executor == "ray":
            return workers.Ray(folder, count)
        if options.executor == "slurm":
            parts = [part for text in options.slurm for part in text.split(",")]
            for part in parts:
                if not re.fullmatch(r"\w+=.+", part):
                    raise UserError(f"--slurm={part}: expected NAME=VALUE.")
            pairs = dict(part.split("=", 1) for part in parts)
            return workers.Slurm(folder, options.workers or 100, pairs)
        return None

    def train(self, engine: workers.Engine | None) -> None:
        options = self.options
        if engine is not None:
            return train_elsewhere(self, engine, options.preempt_grace)
        train_here(self, Runner(
            accept_changes=options.accept_changes, sinks=options.sinks,
            grace=options.preempt_grace, modules=self.command.modules,
            stuck_after=options.stuck_after))
        return None

    # What is shown.

    def say(self, text: str) -> None:
        self.console.print(text)

    def show(self) -> None:
        """The table of a sweep that runs, on a terminal."""
        if self.console.is_terminal and time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self.live.update(self.table(max(5, self.console.height - 6)), refresh=True)

    def note(self, number: int, step: int, values: Mapping[str, float | None]) -> None:
        super().note(number, step, values)
        if hasattr(self, "live"):
            self.show()

    def finish(self, number: int, outcome: Outcome) -> None:
        super().finish(number, outcome)
        entry = self.entries[number]
        ended = sum(e.state in ENDED for e in self.entries.values())
        value = "" if entry.value is None else f"  {self.metric} {entry.value:.6g}"
        reason = f"  ({entry.reason})" if entry.reason and entry.state != DONE else ""
        self.say(f"trial {number} {entry.state}{value}  {described(self.shown()[number])}  "
                 f"[{ended}/{self.total}]{reason}")
        if entry.state in ENDED:
            self.link()

    def ranked(self) -> list[Entry]:
        """The trials, the best first; those without a value last."""
        sign = -1 if self.mode == "max" else 1
        return sorted(self.entries.values(), key=lambda e: (
            e.state == FAILED, e.value is None, 0. if e.value is None else sign * e.value,
            e.number))

    def shown(self) -> dict[int, dict[str, Any]]:
        """What tells each trial from the others, by number: leaves, and names of classes."""
        found = told_apart([e.overrides for e in self.entries.values()])
        return dict(zip(self.entries, found, strict=True))

    def table(self, rows: int) -> Table:
        shown, ranked = self.shown(), self.ranked()
        paths = list(dict.fromkeys(p for row in shown.values() for p in row))
        names = sweep_page.short_names(paths)
        ranks = [self.metric] if self.metric else []
        table = Table("trial", *names.values(), *ranks, "step", "state", "seconds", box=None,
                      pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for entry in ranked[:rows]:
            value = ["-" if entry.value is None else f"{entry.value:.6g}"][:len(ranks)]
            table.add_row(str(entry.number), *(
                plain(shown[entry.number][p]) if p in shown[entry.number] else "-"
                for p in paths), *value, f"{entry.step:,}", entry.state,
                f"{entry.seconds:.1f}" if entry.state in ENDED else "-")
        more = [f"and {len(ranked) - rows} more in {self.folder / 'results.csv'}"]
        if ended := sum(e.state in ENDED for e in ranked):
            more.append(f"{ended} of {self.total} have ended")
        if len(ranked) > rows or ended < self.total:
            parts = sum(1. if e.state in ENDED else min(e.step / self.steps(e.number), 1.)
                        for e in ranked)
            more.append(f"{parts / self.total:.0%} of all steps")
            table.caption = "; ".join(more[len(ranked) <= rows:])
            table.caption_justify = "left"
        return table

    def repeated(self) -> list[tuple[dict[str, Any], list[float]]]:
        """(overrides without the seed, values), the best mean first, where seeds repeat."""
        groups: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries.values():
            rest = {p: v for p, v in entry.overrides.items() if p != "seed"}
            groups[json.dumps(rest, sort_keys=True)].append(entry)
        if max(map(len, groups.values())) < 2:
            return []
        shown = self.shown()
        found = [({p: v for p, v in shown[group[0].number].items() if p != "seed"},
                  [e.value for e in group if e.value is not None and e.state != FAILED])
                 for group in groups.values()]
        sign = -1 if self.mode == "max" else 1
        return sorted(found, key=lambda pair: sign * statistics.fmean(pair[1])
                      if pair[1] else math.inf)

    def summary(self) -> Iterator[Any]:
        counts = {state: sum(e.state == state for e in self.entries.values())
                  for state in (DONE, PRUNED, FAILED, PENDING)}
        if self.metric and (found := self.repeated()):
            names = sweep_page.short_names(dict.fromkeys(p for row, _ in found for p in row))
            table = Table(*names.values(), f"{self.metric}, mean", "sd", "seeds", box=None,
                          pad_edge=False)
            for row, values in found[:50]:
                table.add_row(*(plain(row.get(p, "-")) for p in names),
                              f"{statistics.fmean(values):.6g}" if values else "-",
                              f"{statistics.stdev(values):.2g}" if len(values) > 1 else "-",
                              str(len(values)))
            yield table
        for entry in [e for e in self.entries.values() if e.state == FAILED][:20]:
            yield f"trial {entry.number} failed: {entry.reason}"
        yield (", ".join(f"{n} {state}" for state, n in counts.items() if n) + f" in {self.folder}"
               "; charts: report.html")
        if self.metric is None:
            yield ("no metric ranks them: set best.metric, or --metric=EVALUATOR/NAME; "
                   "results.csv has them all")
        best = self.ranked()[0]
        if best.value is not None and best.state != FAILED:
            yield (f"best {self.metric} {best.value:.6g}: trial {best.number} "
                   f"({described(self.shown()[best.number])}); "
                   f"--experiment={self.folder / 'best'} uses it")

    # What is written.

    def link(self) -> None:
        """`best` is the best trial so far that has ended."""
        ended = [e for e in self.ranked() if e.state in (DONE, PRUNED) and e.value is not None]
        if not ended:
            return
        place = trial_folder(self.folder, ended[0].number).relative_to(self.folder)
        new = self.folder / "best.new"
        with contextlib.suppress(OSError):  # A file system without links goes without.
            new.unlink(missing_ok=True)
            new.symlink_to(place)
            new.replace(self.folder / "best")

    def write(self) -> None:
        """results.csv and the page."""
        shown = self.shown()
        paths = list(dict.fromkeys(p for row in shown.values() for p in row))
        metrics = sorted({name for e in self.entries.values() for name in e.results})
        with io.StringIO(newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "state", *paths, "value", "step", "seconds", *metrics,
                             "reason"])
            for e in self.ranked():
                writer.writerow([e.number, e.state, *(
                    json.dumps(v) if isinstance(v := shown[e.number].get(p, ""), list) else v
                    for p in paths), e.value, e.step, f"{e.seconds:.3f}",
                    *(e.results.get(name, "") for name in metrics), e.reason])
            write_atomically(self.folder / "results.csv", file.getvalue())
        self.link()
        trials = []
        for e in self.entries.values():
            curves: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
            for step, values in logged(trial_folder(self.folder, e.number)):
                for name, value in values.items():
                    if name.removeprefix("train/") not in clock.MEASURED:
                        curves[name].append((step, value))
            trials.append(sweep_page.PageTrial(
                number=e.number, state=e.state, value=e.value, step=e.step, results=e.results,
                reason=e.reason, seconds=e.seconds, curves=curves, overrides={
                    p: plain(v) if isinstance(v, list) else v
                    for p, v in shown[e.number].items()}))
        sweep_page.write(
            self.folder / "report.html", title=f"Sweep of {self.command.name}", metric=self.metric,
            mode=self.mode, trials=trials, notes=[f"Stand-in data: {self.stand_in}."]
            if self.stand_in else [])
