"""The `results` command: what finished runs and sweeps came to, as a table for RESULTS.md.

Runs that differ in their seed alone are one row, with mean and standard deviation.
"""

import contextlib
import csv
import datetime
import json
import os
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from jaxdl import display, logged
from jaxdl.atomic import write_atomically
from jaxdl.errors import UserError
from jaxdl.logged import Logged

BEGIN, END = "<!-- results: written by launch.py results -->", "<!-- end of results -->"
COLUMNS = ("experiment", "data", "expected", "measured", "wall time", "command")


def run(folders: Sequence[Path], output: Path | None) -> None:
    """Prints the table of all finished runs below some folders, and writes it into a file."""
    found, sweeps = list[Logged](), list[tuple[str, ...]]()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"results {folder}: there is no such folder.")
        for path, sweep in runs(folder):
            try:
                if sweep:
                    sweeps.append(swept(path))
                elif (one := logged.read(path)).over:
                    found.append(one)
                else:
                    display.console.print(f"left out: {path}, {one.status}")
            except UserError as error:
                display.console.print(f"left out: {error}")
    rows = [*trained(found), *sorted(sweeps)]
    if not rows:
        raise UserError(f"results {' '.join(map(str, folders))}: no finished run is there.")
    table = Table(*COLUMNS, box=MARKDOWN)
    for row in rows:
        table.add_row(*row)
    wide = Console(width=10_000, no_color=True, markup=False)
    with wide.capture() as capture:
        wide.print(table)
    lines = [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]
    lines[1] = "|" + " --- |" * len(COLUMNS)  # as long as it needs to be
    display.console.print("\n".join(lines))
    if output is not None:
        replace(output, "\n".join(lines))
        display.console.print(f"written into {output}")


def runs(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(run directory or folder of a sweep, whether it is that), in the order of their names;
    nothing below either."""
    for root, inside, files in os.walk(folder):
        inside.sort()
        sweep = "ledger.sqlite" in files
        if sweep or "config.json" in files:
            inside.clear()
            yield Path(root), sweep


def trained(found: Sequence[Logged]) -> Iterator[tuple[str, ...]]:
    """A row for each experiment, of all its seeds."""
    groups: dict[str, list[Logged]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.touched):
        config = {k: v for k, v in one.record.experiment.items() if k != "seed"}
        same = groups[json.dumps([one.record.name, one.record.stand_in, config])]
        # Of a seed that was trained twice the later run counts.
        same[:] = [o for o in same if o.leaf("seed") != one.leaf("seed")] + [one]
    for group in sorted(groups.values(), key=lambda g: (g[0].record.name, g[0].overrides)):
        first = group[0]
        seconds = [s for one in group if (s := wall(one)) is not None]
        yield (f"`{first.record.name}`", data(first), first_line(first.record.expected),
               measured(group),
               lasting(statistics.median(seconds)) if seconds else "-", f"`{command(first)}`")


def data(one: Logged) -> str:
    return data_of(str(one.leaf("data._")).rpartition(":")[2], one.record.stand_in)


def data_of(kind: str, stand_in: str | None) -> str:
    return kind if stand_in is None else f"**stand-in**: {stand_in}"


def first_line(text: str) -> str:
    """Of the experiment's docstring, which says what is expected."""
    return next(iter(text.strip().splitlines()), "-").replace("|", "\\|")


def measured(group: Sequence[Logged]) -> str:
    """The metric that ranks the checkpoints, or the first of an evaluation, and the same one of
    other evaluations: at the last step."""
    known = [m for m in group[0].curves if not m.startswith("train/")]
    first = group[0].ranked()[0] or next(iter(known), "")
    last = first.rpartition("/")[2]
    found = []
    for metric in [first, *(m for m in known if m != first and m.rpartition("/")[2] == last)]:
        values = [float(one.curves[metric][1][-1]) for one in group if metric in one.curves]
        if values:
            found.append(f"{metric} {number(metric, values)}")
    return ", ".join(found) or "-"


def number(metric: str, values: Sequence[float]) -> str:
    """A mean, and the deviation of several."""
    percent = metric.endswith("accuracy") and all(0 <= v <= 1 for v in values)
    mean = statistics.fmean(values)
    text = f"{mean:.2%}" if percent else f"{mean:.4g}"
    if len(values) > 1:
        deviation = statistics.stdev(values)
        text += (f" ± {100 * deviation:.2f}" if percent else f" ± {deviation:.2g}")
        text += f" ({len(values)} seeds)"
    return text.replace("%", " %")


def wall(one: Logged) -> float | None:
    """Seconds from the launch of a run to its last line; None where it was launched again."""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        if len(one.launches) == 1:
            began = datetime.datetime.fromisoformat(str(one.launches[0]["time"]))
            return one.touched - began.timestamp()
    return None


def lasting(seconds: float) -> str:
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.0f} s"


def command(one: Logged) -> str:
    """What repeats it, as the user typed it, without where it was recorded."""
    words = [f"--{line}" for line in one.overrides.splitlines() if line.strip()
             and not line.startswith(("seed=", "#"))]
    return shlex.join(["python", "launch.py", f"--experiment={one.record.name}", *words])


def swept(folder: Path) -> tuple[str, ...]:
    """A row for a sweep: its trials, and the best of them, by the mean over seeds."""
    try:
        facts = json.loads((folder / "sweep.json").read_text())
        with (folder / "results.csv").open(newline="") as file:
            columns, *lines = csv.reader(file)
        metric, sign = facts["metric"], -1 if facts["mode"] == "max" else 1
        kind = data_of(facts["data"], facts["stand_in"])
        place = columns.index("value")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}, a sweep that cannot be read ({error}); the command that made "
                        "it writes its files again.") from error
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for line in lines:
        if line[1] == "done" and line[place]:
            changes = tuple(f"{name}={value}" for name, value in zip(
                columns[2:place], line[2:place], strict=True) if value and name != "seed")
            groups[changes].append(float(line[place]))
    best = min(groups, key=lambda changes: sign * statistics.fmean(groups[changes]), default=())
    told = (f"; best {metric} {number(metric, groups[best])}: {', '.join(best) or 'no change'}"
            if groups else "")
    ended = sum(line[1] in ("done", "pruned", "failed") for line in lines)
    failed = sum(line[1] == "failed" for line in lines)
    trials = f"{ended} of {len(lines)} trials" + (f", {failed} failed" if failed else "")
    words = ["python", "launch.py", "sweep", f"--experiment={facts['name']}",
             *facts.get("flags", ())]
    return (f"`{facts['name']}`, sweep", kind, first_line(facts["expected"]),
            f"{trials}{told}".replace("|", "\\|"),
            lasting(sum(float(line[place + 2]) for line in lines)),
            f"`{shlex.join(words)}`")


def replace(path: Path, table: str) -> None:
    """Puts the table between the two marks of a file; a new file gets them."""
    try:
        text = path.read_text() if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise UserError(f"--output={path}: the table goes between the lines {BEGIN!r} and "
                            f"{END!r}, which are not there.")
        write_atomically(path, f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
    except OSError as error:
        raise UserError(f"--output={path}: {error.strerror}.") from error
