"""Kills real training processes, continues them, and looks for what was lost.

    python benchmarks/kills.py                                  # the full figures
    python benchmarks/kills.py --campaign steps hooks --kills=20

Each campaign prints its figure beside one that it must not have: that of a mutant (a part of the
checkpoint is lost on purpose), or of plain Orbax in the same place. The exit status is 1 if a
figure of jaxdl is bad, or if a mutant was not found.

  steps     SIGKILL in compilation, steps, evaluations and saves of three experiments; every array,
            the examples of every step and the log are compared with those of a run left alone
  mutants   the same with a part of the checkpoint lost at each restore: it must be found
  savers    SIGKILL of a process that only saves and deletes: jaxdl's checkpoints and Orbax's
  devices   the same as "steps" over micro-batches, devices, jit and pmap, data in memory or not
  calls     a kill, ENOSPC and EIO at every call to the file system of one save and one deletion
  sigterm   SIGTERM at random moments from the first import on: saved, left with 75, nothing lost
  grace     SIGTERM, and SIGKILL before the save can be done
  hooks     SIGKILL between a commit and the next evaluations: each line of the log exactly once
  epochs    SIGKILL over three epochs: each example exactly once in each

The moments follow from --seed; on what they fall, also from the machine. Processes are forked from
one that has imported everything, and find their programs compiled.
"""

import argparse
import collections
import errno
import functools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import chaos
import jax
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxdl import checkpoint, display, resume
from jaxdl.checkpoint import committed
from jaxdl.errors import RunError
from jaxdl.process import PREEMPTED

GAP = 8  # steps from one kill to the next, in the mean
FAULTS = {"kill": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}  # at a call to the file system


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
      fault: what was done.
      ours: what came of it.
      bad: whether that is not as it must be.
      beside: what came of it with a mutant, or with plain Orbax.
    """

    fault: str
    ours: str
    bad: bool
    beside: str = ""


@dataclass(frozen=True)
class Lab:
    """Where the campaigns work.

    Attributes:
      folder: for their runs.
      kills: at most so many in a campaign; None for the full figures.
      seed: of the moments.
      experiments: of "steps".
      faults: of "calls".
      bar: shows how far they are.
    """

    folder: Path
    kills: int | None
    seed: int
    experiments: list[str]
    faults: list[str]
    bar: Progress

    def count(self, full: int) -> int:
        return full if self.kills is None else min(full, self.kills)

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def ticking(self, what: str, items: Iterable[Any], total: int | None) -> Iterator[Any]:
        """The items, counted on the bar."""
        task = self.bar.add_task(what, total=total)
        self.bar.refresh()
        for item in items:
            yield item
            self.bar.advance(task)
            self.bar.refresh()


@dataclass(frozen=True)
class Training:
    """One experiment, trained straight and again with kills.

    Attributes:
      folder: of both runs.
      experiment: its name in `chaos`.
      changes: its leaves.
      environment: for its processes.
      plant: a mutant.
    """

    folder: Path
    experiment: str
    changes: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    plant: Callable[[], None] | None = None

    @property
    def run(self) -> Path:
        return self.folder / "killed"

    @property
    def arguments(self) -> list[str]:
        return [f"--experiment={chaos.__file__}",
                *(resume.flag(path, value) for path, value in self.changes.items())]

    def start(self, arguments: list[str], environment: Mapping[str, str],
              log: IO[str]) -> resume.Process:
        """A `resume.Start`: forked."""
        return chaos.forked(arguments, {chaos.EXPERIMENT: self.experiment, **self.environment,
                                        **environment}, log, self.plant)

    def interpreter(self, arguments: list[str], environment: Mapping[str, str],
                    log: IO[str]) -> resume.Process:
        """A `resume.Start`: in a Python of its own."""
        return resume.interpreter(arguments, {chaos.EXPERIMENT: self.experiment,
                                              **self.environment, **environment}, log)

    def straight(self, warm: bool = True) -> list[list[Any]]:
        """The sections of the run that is left alone; trained only once. If `warm`, with programs
        that are compiled already, as those of the killed run will be: so that the kills in sections
        that take long the first time fall into them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run = self.folder / "straight"
        if not run.exists():
            if warm:
                child = resume.Child(self.folder / "first", self.arguments, self.start)
                resume.wait_for(child, "save", 13)  # after every evaluator
                child.kill()
            resume.Child(run, self.arguments, self.start).finish()
        return resume.read(run.with_suffix(".sections"))

    def killed(self, lab: Lab, count: int,
               sections: tuple[str, ...] = resume.SECTIONS) -> list[resume.Kill]:
        """Kills, continues, and trains to the end."""
        name, straight = self.folder.name, self.straight("compile" in sections)
        kills = resume.killed(self.run, self.arguments, straight, count, lab.chance(name),
                              start=self.start, sections=sections)
        return list(lab.ticking(name, kills, count))

    def finish(self) -> None:
        """Trains what was killed to its end."""
        resume.Child(self.run, self.arguments, self.start).finish()

    def forget(self) -> None:
        """Deletes what was killed, for another of its kind."""
        shutil.rmtree(self.run)
        for path in self.folder.glob("killed.*"):
            path.unlink()

    def differences(self) -> "Differences":
        return Differences([(what, number, found) for what, number, found
                            in chaos.in_child(resume.compared, self.folder)])


@dataclass(frozen=True)
class Differences:
    """What differs between the two runs: (what, how many were compared, which differ)."""

    rows: list[tuple[str, int, list[str]]]

    @property
    def names(self) -> list[str]:
        return [what for what, _, found in self.rows if found]

    def counts(self) -> "collections.Counter[str]":
        """How many arrays, examples of a step and lines of the log differ, and of how many."""
        counts: collections.Counter[str] = collections.Counter()
        for what, number, found in self.rows:
            kind = {"examples of each step": "batches", "lines of the log": "log lines"}.get(
                what, "arrays")
            counts[kind] += len(found)
            counts[f"all {kind}"] += number
        return counts

    def __str__(self) -> str:
        counts = self.counts()
        return ", ".join(f"{counts[kind]:,} of {counts[f'all {kind}']:,} {kind}"
                         for kind in ("arrays", "batches", "log lines"))


def steps(lab: Lab) -> Iterator[Figure]:
    """Row 1."""
    names = list(chaos.EXPERIMENTS)
    total = lab.count(500)
    for i, name in enumerate(names):
        count = total // len(names) + (i < total % len(names))
        if name not in lab.experiments:
            continue
        training = Training(lab.folder / f"steps {name}", name, {"steps": max(60, GAP * count)})
        kills = training.killed(lab, count)
        different = training.differences()
        lost = sum(kill.lost for kill in kills)
        where = collections.Counter(kill.section for kill in kills)
        newest = {kill.newest for kill in kills if kill.newest is not None}
        yield Figure(
            f"1: {len(kills)} SIGKILLs of {name} ("
            + ", ".join(f"{n} in {section}" for section, n in where.most_common()) + ")",
            f"{lost} committed steps lost; different: {different}; {len(newest)} commits seen "
            "by a kill", bool(lost or different.names or len(kills) < count))


def mutants(lab: Lab) -> Iterator[Figure]:
    """Row 19."""
    whole = Training(lab.folder / "mutants", "mlp", {"steps": 48})
    whole.straight()
    found = 0
    for name, (plant, where) in chaos.MUTANTS.items():
        folder = lab.folder / f"mutant {name}"
        shutil.copytree(whole.folder, folder)
        training = Training(folder, whole.experiment, whole.changes, plant=plant)
        try:
            training.killed(lab, 4)
            different = training.differences()
            found += where in different.names
            text = f"different: {different}" + ("" if where in different.names
                                                else f"; NOT FOUND in: {where}")
        except RunError as error:
            found, text = found + 1, f"it cannot go on: {error}"
        yield Figure(f"19: mutant, {name} lost at each of 4 resumes", "", False, text)
    none = Training(lab.folder / "mutants", "mlp", {"steps": 48})
    none.killed(lab, 4)
    different = none.differences()
    yield Figure("19: the same kills without a mutant", f"different: {different}",
                 bool(different.names) or found < len(chaos.MUTANTS),
                 f"{found} of {len(chaos.MUTANTS)} mutants found")


def devices(lab: Lab) -> Iterator[Figure]:
    """Row 20."""
    cells = [(parallel, memory, accumulate, count) for parallel in ("jit", "pmap")
             for memory in (True, False) for accumulate in (1, 2, 4) for count in (1, 2, 8)
             if parallel == "jit" or (memory and count > 1)][:lab.kills]
    equal, kills, failed = 0, 0, []
    for parallel, memory, accumulate, count in lab.ticking("devices", cells, len(cells)):
        name = f"{parallel}, {'memory' if memory else 'host'}, {accumulate}, {count}"
        training = Training(lab.folder / f"devices {name}", "mlp", {
            "steps": 24, "save_every": 4, "parallel": parallel, "data.in_memory": memory,
            "task.accumulate": accumulate, "mesh.data": count},
            {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"})
        done = training.killed(lab, 2, ("step", "save"))
        kills += len(done)
        bad = training.differences().names or any(kill.lost for kill in done)
        equal += not bad
        failed += [f"{name}: {bad}"] * bool(bad)
    yield Figure(f"20: {kills} SIGKILLs; accumulate 1, 2, 4; 1, 2, 8 devices; jit, pmap; data in "
                 "memory or read by threads",
                 "; ".join([f"{equal} of {len(cells)} combinations equal to the bit", *failed]),
                 equal < len(cells))


def hooks(lab: Lab) -> Iterator[Figure]:
    """Rows 8 and 57."""
    count = lab.count(200)
    gap = 3 * GAP // 2  # A kill waits for a commit, and may come with the next one.
    training = Training(lab.folder / "hooks", "mlp", {"steps": max(60, gap * count)})
    kills = training.killed(lab, count, ("commit",))
    twice, none, lines = repeated(training)
    few = max(4, count // 10)
    mutant = Training(lab.folder / "hooks, mutant", "mlp", {"steps": max(60, gap * few)},
                      plant=chaos.MUTANTS["end of the log"][0])
    mutant.killed(lab, few, ("commit",))
    wrong = repeated(mutant)
    yield Figure(
        f"8, 57: {len(kills)} SIGKILLs from a commit on, before the next",
        f"{lines:,} lines of 2 evaluators and of the training log: {twice} twice, {none} missing; "
        f"different: {training.differences()}",
        bool(twice or none or training.differences().names or len(kills) < count),
        f"mutant, the log's end not dropped, {few} kills: {wrong[0]} of {wrong[2]:,} lines twice, "
        f"{wrong[1]} missing")


def repeated(training: Training) -> tuple[int, int, int]:
    """(how many lines of the log are there more than once, how many never, how many there should
    be), by what the schedule of the experiment says."""
    experiment = chaos.EXPERIMENTS[training.experiment]()
    end = training.changes["steps"]
    periods = {name: e.every for name, e in experiment.evals.items()}
    periods["train"] = experiment.log_every
    wanted = {(name, step) for name, every in periods.items() for step in range(1, end + 1)
              if step % every == 0 or step == end}
    found = collections.Counter(
        (next(key for key in line if "/" in key).split("/")[0], line["step"])
        for line in map(json.loads, (training.run / "metrics.jsonl").read_text().splitlines()))
    assert wanted.issuperset(found), sorted(found.keys() - wanted)[:3]
    return (sum(n - 1 for n in found.values()), len(wanted - found.keys()), len(wanted))


def epochs(lab: Lab) -> Iterator[Figure]:
    """Row 32."""
    count = lab.count(100)
    size, batch = chaos.cnn().data.open("train").size, 16
    changes = {"batch_size": batch, "steps": -(-3 * size // batch), "save_every": 2}
    training = Training(lab.folder / "epochs", "cnn", changes)
    places = ("step", "save", "compile")
    kills = training.killed(lab, count, places)
    twice, missing = visited(training, size, batch)
    mutant = Training(lab.folder / "epochs, mutant", "cnn", changes,
                      plant=chaos.MUTANTS["position"][0])
    mutant.killed(lab, few := max(4, count // 10), places)
    wrong = visited(mutant, size, batch)
    yield Figure(
        f"32: {len(kills)} SIGKILLs over 3 epochs of {size:,} examples",
        f"{twice} examples twice in an epoch, {missing} missing",
        bool(twice or missing or len(kills) < count),
        f"mutant, position lost, {few} kills: {wrong[0]:,} twice, {wrong[1]:,} missing")


def visited(training: Training, size: int, batch: int) -> tuple[int, int]:
    """(how many examples were trained on more than once in an epoch, how many never), of three
    epochs. The last time that a step was done counts; its ids are those with its checksum."""
    experiment, end = chaos.EXPERIMENTS[training.experiment](), training.changes["steps"]
    source = experiment.data.open("train")
    known = {zlib.crc32(ids.tobytes()): ids for ids in (
        source.index(experiment.seed, step * batch, batch) for step in range(end))}
    trained = {step: crc for section, step, _, *rest
               in resume.read(training.run.with_suffix(".sections")) if section == "step"
               for crc in rest}
    ids = [i for step in range(end) for i in known[trained[step]]]
    counts = [collections.Counter(ids[epoch * size:(epoch + 1) * size]) for epoch in range(3)]
    return (sum(n - 1 for c in counts for n in c.values()),
            sum(size - len(c) for c in counts))


def savers(lab: Lab) -> Iterator[Figure]:
    """Row 1 again, of what only saves, beside plain Orbax."""
    count = lab.count(150)
    pairs = [("jaxdl, newest kept", "Orbax, newest kept"),
             ("jaxdl, newest and best kept", "Orbax, best kept")]
    for pair in pairs:
        ours, theirs = (saver(lab, name, count) for name in pair)
        yield Figure(f"1: {count} SIGKILLs of what saves and deletes; {pair[0]}, {pair[1]}",
                     str(ours), bool(ours.lost or ours.broken or ours.failed), str(theirs))


@dataclass
class Saved:
    """What kills of a saving process came to: steps that were confirmed and not found again, steps
    that are listed and cannot be read, how often the newest was one of them, and launches that
    failed."""

    confirmed: int = 0
    lost: int = 0
    broken: int = 0
    newest: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return (f"{self.confirmed:,} steps confirmed, {self.lost} of them lost; {self.broken} "
                f"listed that cannot be read, {self.newest} times the newest; {self.failed} "
                "launches failed")


def saver(lab: Lab, name: str, count: int) -> Saved:
    """Kills a process that only saves and deletes, again and again, in one folder."""
    folder, chance, found = lab.folder / name, lab.chance(name), Saved()
    folder.mkdir()
    report, seconds = folder / "report", [0.2]
    report.touch()
    broken: set[int] = set()
    confirmed: set[int] = set()
    with (folder / "log").open("a") as log:
        for _ in lab.ticking(f"savers, {name}", range(count + 1), count + 1):
            begin, wait = report.stat().st_size, chance.uniform(0, 2 * statistics.mean(seconds))
            child = chaos.Forked(functools.partial(
                chaos.save_on, name, folder / "checkpoints", report), {}, log)
            began = time.time()
            while child.poll() is None and time.time() < began + chaos.PATIENCE:
                done = [line for line in resume.read(report, begin) if "confirmed" in line]
                if done and time.time() > done[0]["time"] + wait:
                    break
                time.sleep(0.001)
            child.kill()
            lines: Any = resume.read(report, begin)
            if not lines or child.returncode != -signal.SIGKILL:
                found.failed += 1
                continue
            first, done = lines[0], [line for line in lines if "confirmed" in line]
            seconds += [b["time"] - a["time"] for a, b in pairwise(done)]
            found.lost += chaos.lost(name, confirmed, set(first["listed"]) - set(first["broken"]))
            found.newest += bool(first["listed"]) and first["listed"][-1] in first["broken"]
            broken |= set(first["broken"])
            found.confirmed += len(done)
            confirmed = {s for s in confirmed if s <= first["newest"]}
            confirmed |= {line["confirmed"] for line in done}
    found.broken = len(broken)
    return found


def calls(lab: Lab) -> Iterator[Figure]:
    """Rows 2 and 11: at every call to the file system of one save and one deletion."""
    if reason := chaos.untraceable():
        yield Figure("2, 11: every call to the file system", f"skipped: {reason}", False)
        return
    for fault, number in FAULTS.items():
        if fault not in lab.faults:
            continue
        ours, theirs = (befallen(lab, f"{who}, one kept", fault, number)
                        for who in ("jaxdl", "Orbax"))
        row = "2" if fault == "kill" else "11"
        yield Figure(f"{row}: {fault} at each of {ours.points} calls (plain Orbax: "
                     f"{theirs.points}) of one save and one deletion",
                     str(ours), ours.bad, str(theirs))


@dataclass
class Befallen:
    """What a fault at every call came to.

    Attributes:
      points: calls that it was tried at.
      told: processes that said so, and ended with 1.
      done: processes that ended well.
      problems: what must not be, and at which calls.
    """

    points: int = 0
    told: int = 0
    done: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))

    @property
    def bad(self) -> bool:
        return bool(self.problems)

    def __str__(self) -> str:
        hit = {call for found in self.problems.values() for call in found}
        ends = f" ({self.told} said so, {self.done} did without)" if self.told + self.done else ""
        return f"{self.points - len(hit)} of {self.points} survived{ends}" + "".join(
            f"; {what}: {len(found)} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            for what, found in self.problems.items())


def befallen(lab: Lab, name: str, fault: str, number: int) -> Befallen:
    """A process saves step 2 and deletes step 1, once for each of its calls, at which the fault
    comes: number 0 kills, another is an error."""
    folder = lab.folder / f"calls {fault} {name}"
    folder.mkdir()
    chaos.in_child(chaos.inspected, name, str(folder / "before"), 1)
    found, waiting = Befallen(), []

    def look() -> None:
        results = chaos.in_child(chaos.all_inspected, name, [str(f) for f, *_ in waiting], 1)
        for (trial, call, status, said), seen in zip(waiting, results, strict=True):
            for problem in problems(seen, status, said, fault):
                found.problems[problem].append(call)
            found.told += status == 1
            found.done += status == 0
            shutil.rmtree(trial)
        waiting.clear()

    def points() -> Iterator[int]:
        point = 0
        while lab.kills is None or point < lab.kills:
            trial = folder / str(point)
            shutil.copytree(folder / "before", trial)
            status, made, said = chaos.once(name, trial, folder / "log", point, number)
            if len(made) <= point:  # It made fewer calls than that.
                return
            call = f"{point + 1} {made[point].name} {made[point].path or '.'}"
            waiting.append((trial, call, status, said))
            if len(waiting) == 20:
                look()
            point += 1
            yield point

    found.points = sum(1 for _ in lab.ticking(folder.name, points(), None))
    look()
    return found


def problems(seen: Mapping[str, Any], status: int, said: str, fault: str) -> Iterator[str]:
    """What must not be after a fault, by what is found in the folder, how the process ended, and
    what it told of an error."""
    if status == -signal.SIGALRM:
        yield f"hung for {chaos.PATIENCE:.0f} s"
    elif status not in ((-signal.SIGKILL,) if fault == "kill" else (0, 1)):
        yield f"ended with {status}"
    elif status == 1 and not said:
        yield "ended in a traceback"
    if status == 0 and 2 not in seen["listed"]:
        yield "said that all is well, and did not save"
    if seen["broken"]:
        yield "lists a step that cannot be read"
    if not {1, 2} & set(seen["listed"]) - set(seen["broken"]):
        yield "no step left"
    if seen["error"] is not None:
        yield f"cannot go on ({seen['error'][:80]})"


@dataclass
class Stop:
    """What came of a SIGTERM.

    Attributes:
      section: in which it came.
      seconds: until the process had ended.
      status: of it.
      begun: whether the run had; before, there is nothing to save.
      saved: whether the step that it had come to is committed; True where no step had begun.
    """

    section: str
    seconds: float
    status: int
    begun: bool
    saved: bool

    @property
    def good(self) -> bool:
        if self.begun:
            return self.status == PREEMPTED and self.saved
        return self.status in (PREEMPTED, -signal.SIGTERM, 128 + signal.SIGTERM)


def terminated(training: Training, section: str, step: int, length: float, chance: random.Random,
               grace: float | None = None) -> Stop:
    """One launch, and a SIGTERM to it; after so many seconds of grace, a SIGKILL."""
    before = committed(training.run / "checkpoints")
    start = training.interpreter if section == "import" else training.start
    child = resume.Child(training.run, training.arguments, start)
    try:
        if section not in ("import", "prepare"):
            resume.wait_for(child, section, step)
        time.sleep(chance.uniform(0, length))
        sent = time.time()
        if child.process.poll() is None:
            os.kill(child.process.pid, signal.SIGTERM)
        limit = chaos.PATIENCE if grace is None else grace
        while child.process.poll() is None and time.time() < sent + limit:
            time.sleep(0.001)
    finally:
        child.kill()
    seconds = time.time() - sent
    seen, done = resume.read(child.sections, child.begin), committed(training.run / "checkpoints")
    last = next((s[1] for s in reversed(seen) if s[0] == "step"), None)
    saved = done[-1:] >= before[-1:] and (last is None or done[-1:] == [last + 1])
    came = next((s[0] for s in reversed(seen) if s[2] <= sent), section)
    status = child.process.returncode
    assert status is not None
    return Stop(came, seconds, status, bool(seen), saved)


def sigterm(lab: Lab) -> Iterator[Figure]:
    """Row 3."""
    places = ("import", "prepare", "compile", "restore", "step", "evaluate", "save")
    stops: list[Stop] = []
    differences, over = [], 0
    total, names = lab.count(200), list(chaos.EXPERIMENTS)
    for i, name in enumerate(names):
        count = total // len(names) + (i < total % len(names))
        if name not in lab.experiments:
            continue
        training = Training(lab.folder / f"sigterm {name}", name, {"steps": max(60, GAP * count)})
        lengths = {**until_compile(training), **medians(training.straight())}
        chance = lab.chance(f"sigterm {name}")
        steps = training.changes["steps"]
        for k in lab.ticking(f"sigterm {name}", range(count), count):
            place = places[(k + i) % len(places)]
            while True:
                last = [0, *committed(training.run / "checkpoints")][-1]
                stop = terminated(training, place, min(last + chance.randrange(2 * GAP), steps - 1),
                                  lengths[place], chance)
                if stop.status or committed(training.run / "checkpoints")[-1:] != [steps]:
                    break
                differences += training.differences().names  # The run was over before the signal.
                training.forget()
                over += 1
            stops.append(stop)
        training.finish()
        differences += training.differences().names
    begun = [stop for stop in stops if stop.begun]
    early = [stop for stop in stops if not stop.begun]
    good = sum(stop.good for stop in begun)
    where = collections.Counter(stop.section for stop in begun)
    text = [f"{good} of {len(begun)} saved what had begun and left with {PREEMPTED}"]
    text += [f"{n} in {section} ended with {status}" for (section, status), n in
             collections.Counter((s.section, s.status) for s in stops if not s.good).items()]
    text.append(f"from the signal to the end {percentiles(begun)}")
    for section in ("import", "prepare"):
        found = [stop for stop in early if stop.section == section]
        ends = collections.Counter(stop.status for stop in found)
        text.append(f"{len(found)} before the run had begun ({section}) left with "
                    + (", ".join(f"{status} ({n})" for status, n in ends.items()) or "nothing")
                    + (f" after {percentiles(found)}" if found else ""))
    text.append(f"{over} came after the last step of a run, which began anew")
    text.append(f"continued to the end, different: {', '.join(differences) or 'nothing'}")
    yield Figure(
        f"3: {len(stops)} SIGTERMs ({len(early)} before the run had begun, then "
        + ", ".join(f"{n} in {section}" for section, n in where.most_common()) + ")",
        "; ".join(text), bool(differences) or not all(stop.good for stop in stops),
        orbax_terminated(lab, max(4, total // 10)))


def percentiles(stops: list[Stop]) -> str:
    """Seconds from the signal to the end."""
    seconds = sorted(stop.seconds for stop in stops)
    high = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
    return f"{statistics.median(seconds):.2f} s in the median, {high:.2f} s at the 99th percentile"


def until_compile(training: Training) -> dict[str, float]:
    """Seconds that a process imports, and that it prepares the run, before it compiles."""
    found = {}
    for place, start in (("import", training.interpreter), ("prepare", training.start)):
        began, folder = time.time(), training.folder / place
        folder.parent.mkdir(exist_ok=True)
        child = resume.Child(folder, training.arguments, start)
        resume.wait_for(child, "compile", 0)
        found[place] = time.time() - began
        child.kill()
    return found


def medians(sections: list[list[Any]]) -> dict[str, float]:
    """Seconds of each section, in the median."""
    lengths: dict[str, list[float]] = collections.defaultdict(list)
    for before, after in pairwise(sections):
        lengths[before[0]].append(after[2] - before[2])
    return {section: statistics.median(found) for section, found in lengths.items()}


def orbax_terminated(lab: Lab, count: int) -> str:
    """What SIGTERM does to a process that saves with plain Orbax, and nothing else."""
    name, chance, lost, ends = "Orbax, newest kept", lab.chance("orbax sigterm"), 0, []
    folder = lab.folder / "sigterm Orbax"
    folder.mkdir()
    report = folder / "report"
    report.touch()
    with (folder / "log").open("a") as log:
        for _ in lab.ticking("sigterm Orbax", range(count), count):
            begin = report.stat().st_size
            child = chaos.Forked(functools.partial(
                chaos.save_on, name, folder / "checkpoints", report), {}, log)
            while child.poll() is None and len(resume.read(report, begin)) < 3:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            os.kill(child.pid, signal.SIGTERM)
            ends.append(child.wait())
            accepted = [line["accepted"] for line in resume.read(report, begin)
                        if "accepted" in line]
            seen = chaos.in_child(chaos.inspected, name, str(folder / "checkpoints"))
            lost += seen["from"] < accepted[-1]
    return (f"plain Orbax, {count} SIGTERMs: status {', '.join(map(str, sorted(set(ends))))}, the "
            f"step that `save` had accepted lost {lost} times")


def grace(lab: Lab) -> Iterator[Figure]:
    """Row 5."""
    wanted = lab.count(50)
    training = Training(lab.folder / "grace", "mlp", {"steps": GAP * 3 * max(wanted, 8)})
    length = medians(training.straight())["step"]
    chance, end = lab.chance("grace"), training.changes["steps"]
    needed = statistics.median(terminated(training, "step", step, length, chance).seconds
                               for step in (5, 10, 15))
    cut = lost = broken = 0
    for k in lab.ticking("grace", range(3 * wanted), wanted):
        before = committed(training.run / "checkpoints")
        stop = terminated(training, "step", 20 + int((end - 20) * k / (3 * wanted)), length,
                          chance, grace=chance.uniform(0, needed))
        done = committed(training.run / "checkpoints")
        cut += stop.status == -signal.SIGKILL
        lost += done[-1:] < before[-1:]
        try:
            checkpoint.verify(training.run / "checkpoints", done[-1])
        except ValueError:
            broken += 1
        if cut == wanted:
            break
    training.finish()
    different = training.differences()
    yield Figure(
        f"5: SIGTERM, and SIGKILL after 0 to {needed:.2f} s, the median of a save and exit",
        f"{cut - broken - lost} of {cut} that were cut: last commit intact; different at the end: "
        f"{different}", bool(lost or broken or different.names or cut < wanted))


CAMPAIGNS: dict[str, Callable[[Lab], Iterator[Figure]]] = {
    "steps": steps, "mutants": mutants, "savers": savers, "devices": devices, "calls": calls,
    "sigterm": sigterm, "grace": grace, "hooks": hooks, "epochs": epochs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS),
                        metavar="NAME", help=f"which: {', '.join(CAMPAIGNS)}; all if left out")
    parser.add_argument("--kills", type=int, help="at most so many in each, for a shorter run")
    parser.add_argument("--experiments", nargs="+", choices=chaos.EXPERIMENTS,
                        default=list(chaos.EXPERIMENTS), metavar="NAME",
                        help=f"of steps: {', '.join(chaos.EXPERIMENTS)}; all if left out")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS),
                        metavar="NAME", help=f"of calls: {', '.join(FAULTS)}; all if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs are made, and stay; a "
                        "temporary one, which stays only if a figure is bad, if left out")
    flags = parser.parse_args()
    if flags.kills is not None and flags.kills < 1:
        parser.error(f"--kills={flags.kills}: expected at least 1")
    if flags.folder is not None:
        flags.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=flags.folder)).resolve()
    programs = str(folder / "programs")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs  # of processes that are not forked
    jax.config.update("jax_compilation_cache_dir", programs)
    chaos.preload()
    display.console.quiet = True  # of this process: `resume` would show its own progress
    print(f"seed {flags.seed}; runs in {folder}", flush=True)
    table = Table("fault", "jaxdl", "beside it", "seconds", box=MARKDOWN)
    shown, bad, began = Console(stderr=True), 0, time.time()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
               TimeElapsedColumn())
    with Progress(*columns, console=shown, auto_refresh=False,
                  disable=not shown.is_terminal) as bar:
        lab = Lab(folder, flags.kills, flags.seed, flags.experiments, flags.faults, bar)
        for name in flags.campaign:
            last = time.time()
            for figure in CAMPAIGNS[name](lab):
                bad += figure.bad
                mark = "BAD: " if figure.bad else ""
                seconds, last = f"{time.time() - last:.0f}", time.time()
                table.add_row(figure.fault, mark + figure.ours, figure.beside, seconds)
                print(f"{name}: {figure.fault}: {mark}{figure.ours}"
                      f"{f' | {figure.beside}' if figure.beside else ''} [{seconds} s]", flush=True)
    Console(width=200).print(table)
    print(f"{(time.time() - began) / 60:.0f} minutes; seed {flags.seed}; Python "
          f"{sys.version.split()[0]}, jax {jax.__version__}, orbax {chaos.orbax.__version__}")
    if bad:
        print(f"{bad} figures are bad; the runs are in {folder}")
    elif flags.folder is None:
        shutil.rmtree(folder)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
