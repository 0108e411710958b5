"""Whether a run that is killed and continued is the run that was never killed, to the bit.

One process trains straight through. Another is killed (SIGKILL) at random moments, while it
compiles, in a training step, in an evaluation, and while a checkpoint is being written, and is
continued each time by the same command. Then every array of the last checkpoints, the ids of the
examples of every step and every line of the log are compared.
"""

import dataclasses
import datetime
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from rich.table import Table

from jaxdl import clock, display, record
from jaxdl.checkpoint import arrays, committed
from jaxdl.display import console
from jaxdl.errors import RunError, UserError

if TYPE_CHECKING:
    from jaxdl.cli import Command

SECTIONS = ("step", "save", "evaluate", "compile")
STEPS = 60  # at most, unless --steps is typed


@dataclass(frozen=True)
class Kill:
    """What one kill met, and what became of the run.

    Attributes:
      section: in which it came.
      step: the last step that had begun.
      newest: the newest step that was committed then; None if there was none.
      resumed: the step from which the next launch went on; None if it never came to one.
    """

    section: str
    step: int | None
    newest: int | None
    resumed: int | None = None

    @property
    def lost(self) -> bool:
        """Whether what was committed was not found again."""
        return self.newest is not None and self.resumed is not None and self.resumed < self.newest


def verify(command: "Command") -> int:
    """Trains, kills, compares and prints; 0 if nothing differs, else 1.

    Raises:
      UserError: of the options.
      RunError: a run ended by itself, with an error.
    """
    options: Any = command.options
    if options.kills < 1:
        raise UserError(f"--kills={options.kills}: expected at least 1.")
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(options.workdir or Path("runs", command.name, f"verify-resume-{stamp}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--workdir={folder}: is not empty.")
    except OSError as error:
        raise UserError(f"--workdir={folder}: cannot be made ({error.strerror}).") from error
    changes = shortened(command)
    console.print(f"{command.name} in {folder}: "
                  + ", ".join(f"{k}={v}" for k, v in changes.items()))
    arguments = [f"--experiment={command.target}",
                 *(flag(path, value) for path, value in {**command.typed, **changes}.items())]

    straight = Child(folder / "straight", arguments)
    with console.status("training without a kill"):
        straight.finish()
    sections, recorded = read(straight.sections), record.read(folder / "straight")
    if recorded is not None and recorded.stand_in:
        display.announce(recorded.stand_in, "The declared data is not here; see the logs.")
    console.print(f"trained {int(changes.get('steps', command.experiment.steps)):,} steps without "
                  "a kill")
    kills = list(killed(folder / "killed", arguments, sections, options.kills,
                        random.Random(options.moments)))
    rows = compared(folder)
    report(kills, rows)
    lost = [kill for kill in kills if kill.lost]
    different = [what for what, _, differences in rows if differences]
    if not lost and not different:
        console.print(f"the killed run is the run that was not, to the bit; both are in {folder}",
                      markup=False)
        return 0
    console.print(f"error: {len(lost)} committed steps lost; different: "
                  f"{', '.join(different) or 'nothing'}; both runs are in {folder}")
    return 1


def shortened(command: "Command") -> dict[str, Any]:
    """The leaves to change so that a short run evaluates and saves several times; none that was
    typed."""
    experiment = command.experiment
    steps = experiment.steps if "steps" in command.typed else min(experiment.steps, STEPS)
    wanted = {"steps": steps, "save_every": min(experiment.save_every, max(1, steps // 6)),
              "log_every": min(experiment.log_every, max(1, steps // 10))}
    for name, evaluator in experiment.evals.items():
        if hasattr(evaluator, "every"):
            wanted[f"evals.{name}.every"] = min(evaluator.every, max(1, steps // 3))
    return {path: value for path, value in wanted.items() if path not in command.typed}


def flag(path: str, value: Any) -> str:
    """A leaf as it is typed."""
    return f"--{path}={value!r}" if isinstance(value, tuple) else f"--{path}={value}"


class Process(Protocol):
    """What is needed of a process, in a group of its own: a part of `subprocess.Popen`."""

    pid: int

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


# (arguments of the command line, what to add to the environment, its output) -> the process
Start = Callable[[list[str], Mapping[str, str], IO[str]], Process]


def interpreter(arguments: list[str], environment: Mapping[str, str], log: IO[str]) -> Process:
    """The command in a Python of its own, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from jaxdl.cli import main; sys.exit(main())",
         *arguments], env={**os.environ, **environment}, stdout=log, stderr=log,
        start_new_session=True)


class Child:
    """A training process of its own, which tells the sections that it enters.

    Args:
      run: its run directory.
      arguments: the experiment and its leaves.
      start: how it is started.
    """

    def __init__(self, run: Path, arguments: list[str], start: Start = interpreter) -> None:
        self.run = run
        self.sections, self.log = run.with_suffix(".sections"), run.with_suffix(".log")
        self.begin = self.sections.stat().st_size if self.sections.exists() else 0
        self.done = committed(run / "checkpoints")
        with self.log.open("a") as log:
            self.process = start(["train", f"--workdir={run}", *arguments],
                                 {clock.ENVIRONMENT: str(self.sections)}, log)

    def finish(self) -> None:
        """Until it has ended; raises what it said unless that was well."""
        try:
            status = self.process.wait()
        except BaseException:
            self.kill()
            raise
        if status:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RunError(f"{self.log}: the run ended by itself with status {status}: "
                           f"{''.join(last)}")

    def kill(self) -> None:
        """All its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def read(path: Path, begin: int = 0) -> list[list[Any]]:
    """[section, step, time] or [section, step, time, checksum] from a place of the file on; a line
    torn by a kill is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(begin)
        return [json.loads(line) for line in file.read().splitlines(keepends=True)
                if line.endswith(b"\n")]


def killed(run: Path, arguments: list[str], straight: list[list[Any]], count: int,
           chance: random.Random, *, start: Start = interpreter,
           sections: tuple[str, ...] = SECTIONS) -> Iterator[Kill]:
    """Kills a run so often, continues it to its end, and tells of each kill.

    The kills are spread over the steps. Each comes after the process has entered a section, within
    the time that such a section took in the straight run; for a save, which goes on in the
    background, a second more, or the time between two saves if that is less.

    Args:
      run: its run directory.
      arguments: the experiment and its leaves.
      straight: the sections of the run that was not killed.
      count: how often to kill.
      chance: when.
      start: how its processes are started.
      sections: in which to kill, in turn: those of the clock, and "commit", the time from one
        commit to about the next.
    """
    lengths: dict[str, list[float]] = defaultdict(list)
    for before, after in pairwise(straight):
        lengths[before[0]].append(after[2] - before[2])
    saves = [s[2] for s in straight if s[0] == "save"]
    lengths["commit"] = [after - before for before, after in pairwise(saves)]
    end = max(step for _, step, *_ in straight)
    possible = [section for section in sections if lengths[section]]
    background = min(1., statistics.median(lengths["commit"] or [1.]))
    waiting: list[Kill] = []
    for i in range(count):
        section = possible[i % len(possible)]
        step = int(end * (i + chance.random()) / count)
        length = statistics.median(lengths[section]) + (background if section == "save" else 0.)
        child = Child(run, arguments, start)
        try:
            with console.status(f"kill {i + 1} of {count}: in {section}"):
                wait_for(child, section, step)
                time.sleep(chance.uniform(0, length))
        finally:
            child.kill()
        seen, done = read(child.sections, child.begin), committed(run / "checkpoints")
        yield from resumed(waiting, began(seen))
        if child.process.returncode != -signal.SIGKILL:
            child.finish()
            console.print(f"the run was over before kill {i + 1}")
            break
        waiting.append(Kill(seen[-1][0] if seen else "start", next(
            (s[1] for s in reversed(seen) if s[0] == "step"), None), done[-1] if done else None))
    child = Child(run, arguments, start)
    with console.status("training to the end"):
        child.finish()
    first = began(read(child.sections, child.begin))
    yield from resumed(waiting, committed(run / "checkpoints")[-1] if first is None else first)


def resumed(waiting: list[Kill], step: int | None) -> Iterator[Kill]:
    """The kills of which it is now known from which step the run went on."""
    while waiting and step is not None:
        yield dataclasses.replace(waiting.pop(0), resumed=step)


def wait_for(child: Child, section: str, step: int) -> None:
    """Until the process enters a section at this step or later, commits such a step ("commit"), or
    has ended. It compiles and restores once."""
    def there() -> bool:
        if section == "commit":
            new = set(committed(child.run / "checkpoints")).difference(child.done)
            return any(s >= step for s in new)
        return any(s[0] == section and (s[1] >= step or section in ("compile", "restore"))
                   for s in read(child.sections, child.begin))

    while child.process.poll() is None and not there():
        time.sleep(0.002)


def began(sections: list[list[Any]]) -> int | None:
    """The step from which a launch went on; None if it did not come to one."""
    return next((s[1] for s in sections if s[0] in ("step", "evaluate", "save")), None)


def compared(folder: Path) -> list[tuple[str, int, list[str]]]:
    """(what, how many were compared, which differ)."""
    runs = [folder / "straight", folder / "killed"]
    steps = [committed(run / "checkpoints")[-1] for run in runs]
    a, b = (arrays(run / "checkpoints", step) for run, step in zip(runs, steps, strict=True))
    names = {"params": "parameters", "frozen": "frozen parameters", "opt_state": "optimizer",
             "ema": "average of parameters", "mutable": "statistics", "key": "random keys",
             "step": "position", "seen": "position", "window": "sums of the log"}
    groups: dict[str, list[str]] = defaultdict(list)
    for path in sorted({*a, *b}):
        first, *rest = path.split("/")
        groups[names.get(rest[0] if first == "state" else first, "rest of the state")].append(path)
    rows = [(name, len(paths), [p for p in paths if not same(a.get(p), b.get(p))])
            for name, paths in groups.items()]
    ids = [{s[1]: s[3] for s in read(run.with_suffix(".sections")) if s[0] == "step"}
           for run in runs]
    again = read(runs[1].with_suffix(".sections"))
    wrong = sorted({s[1] for s in again if s[0] == "step" and ids[0].get(s[1]) != s[3]}
                   | (ids[0].keys() ^ ids[1].keys()))
    rows.append(("examples of each step", len(ids[0]), [f"step {s}" for s in wrong]))
    logs = [metrics(run) for run in runs]
    longest = max(map(len, logs))
    padded = [log + [{}] * (longest - len(log)) for log in logs]
    rows.append(("lines of the log", longest, [
        f"line {i + 1}" for i, (x, y) in enumerate(zip(*padded, strict=True)) if x != y]))
    return rows


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays are the same bits."""
    return (a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype
            and a.tobytes() == b.tobytes())


def metrics(run: Path) -> list[Mapping[str, Any]]:
    """The log of a run without what its clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.removeprefix("train/") not in clock.MEASURED}
            for line in lines]


def report(kills: list[Kill], rows: list[tuple[str, int, list[str]]]) -> None:
    """Both tables."""
    table = Table("kill", "in", "at step", "newest checkpoint", "went on from step", "verdict",
                  box=None, pad_edge=False)
    for i, kill in enumerate(kills):
        table.add_row(str(i + 1), kill.section, *(
            "-" if x is None else f"{x:,}" for x in (kill.step, kill.newest, kill.resumed)),
            "LOST" if kill.lost else "nothing lost")
    console.print(table)
    table = Table("compared", "number", "different", "verdict", box=None, pad_edge=False)
    for what, number, different in rows:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        table.add_row(what, f"{number:,}", f"{different[0]}{more}" if different else "none",
                      "DIFFERENT" if different else "equal")
    console.print(table)
