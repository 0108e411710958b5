"""The `check` command: Karpathy's recipe for training neural networks, as automatic checks.

http://karpathy.github.io/2019/04/25/recipe/ : look at the data; get the skeleton right (the loss at
initialisation, inputs that matter, one batch learned by heart, no leak between examples); only then
tune. Most mistakes in a network raise no error. What follows looks for them, on any experiment,
before its long run; what is exact in JAX (gradients of one example with respect to another, one
step in float64) is checked exactly.

The checks are in `checks/`: data.py, model.py and training.py, over what subject.py prepares.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdl import page
from jaxdl.checks.data import DATA
from jaxdl.checks.model import MODEL
from jaxdl.checks.subject import Finding, Subject, skipped
from jaxdl.checks.training import TRAINING
from jaxdl.errors import UserError, nearest, out_of_memory, told
from jaxdl.experiment import Experiment

COLOURS = {"pass": "#2b8a3e", "warn": "#b35c00", "FAIL": "#c92a2a", "-": "#767d86"}
STYLES = {"pass": "green", "warn": "yellow", "FAIL": "bold red", "-": "dim"}
PICTURES = 32  # examples on the page
LONG = 30  # seconds of a check that a log is told of

Check = Callable[[Subject], Finding]


def checks(task: Any, *, fast: bool = False, only: Sequence[str] = ()) -> dict[str, Check]:
    """The checks of a task by name: those of jaxdl, and its own.

    Args:
      task: of the experiment.
      fast: leaves out those that train.
      only: names, if not all.
    """
    found: dict[str, Check] = {**DATA, **MODEL, **({} if fast else TRAINING)}
    if hasattr(task, "checks"):
        found |= task.checks()
    for name in only:
        if name not in found:
            more = " (it trains, and --fast leaves it out)" if name in TRAINING else ""
            raise UserError(f"--only={name}: no such check{more}; there are {', '.join(found)}."
                            f"{nearest(name, found)}")
    return {name: check for name, check in found.items() if not only or name in only}


def examine(experiment: Experiment, subject: Subject | None = None, *, fast: bool = False,
            only: Sequence[str] = ()) -> Iterator[tuple[str, Finding, float]]:
    """(name, what it found, seconds) of each check of an experiment whose data is here.

    A check that raises has failed, with what it raised: what an experiment cannot do for a check,
    it may not be able to do in training.
    """
    subject = subject or Subject(experiment)
    reasons = _reasons(experiment)
    for name, check in checks(experiment.task, fast=fast, only=only).items():
        began = time.perf_counter()
        if name in reasons:
            finding = skipped(reasons[name])
        else:
            try:
                finding = check(subject)
            except (MemoryError, RuntimeError) as error:
                if (short := out_of_memory(error)) is not None:
                    raise short from error
                finding = _raised(error)
            except UserError as error:
                finding = Finding("FAIL", str(error))
            except Exception as error:
                finding = _raised(error)
        yield name, finding, time.perf_counter() - began


def _reasons(experiment: Experiment) -> dict[str, str]:
    """Why checks do not apply, as the data, the model and the task say, and the tasks inside."""
    parts, task = [experiment.task], getattr(experiment.task, "task", None)
    while task is not None:
        parts.append(task)
        task = getattr(task, "task", None)
    parts += [getattr(experiment.task, "model", None), experiment.data]
    return {name: reason for part in reversed(parts)
            for name, reason in getattr(part, "not_applicable", {}).items()}


def _raised(error: Exception) -> Finding:
    """Of a check that could not be carried out."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
    return Finding("FAIL", f"raised {told(error)}", "", f"{own.filename}:{own.lineno}")


def run(command: Any) -> int:
    """Checks an experiment; 1 if a check has failed."""
    from jaxdl import allocator, cli, compilation, record

    options = command.options
    allocator.keep_memory()
    compilation.keep_programs()
    folder = Path(options.workdir or Path("runs", command.name))
    record.check_writable(folder)  # now, and not when all has been checked
    experiment, stand_in = cli.with_data(command, None, options.strict_data)
    only = [name.strip() for text in options.only for name in text.split(",")]
    wanted = checks(experiment.task, fast=options.fast, only=only)
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # A file has no edge.
    subject = Subject(experiment, steps=options.train_steps, batch_size=options.examples)
    began, findings = time.perf_counter(), {}
    waiting = Console(stderr=True, highlight=False)
    with waiting.status("reading the data") as status:
        for i, name in enumerate(wanted):
            status.update(f"{i + 1} of {len(wanted)}: {name}")
            for _, finding, seconds in examine(experiment, subject, fast=options.fast,
                                               only=(name,)):
                findings[name] = finding, seconds
                if seconds > LONG and not waiting.is_terminal:  # A file shows no status.
                    waiting.print(f"{i + 1} of {len(wanted)}: {name} {finding.verdict}, "
                                  f"{seconds:.0f} s", markup=False, soft_wrap=True)
    console.print(table(findings))
    for name, (finding, _) in findings.items():
        if finding.verdict in ("warn", "FAIL") and finding.look_at:
            console.print(f"{finding.verdict} {name}: look at {finding.look_at}",
                          style=STYLES[finding.verdict], soft_wrap=True, markup=False)
    counts = {verdict: sum(f.verdict == verdict for f, _ in findings.values())
              for verdict in ("pass", "warn", "FAIL", "-")}
    title = f"Check of {command.name}"
    notes = [f"Stand-in data: {stand_in}."] if stand_in else []
    notes.append(f"{subject.experiment.steps} of {experiment.steps:,} steps, batches of "
                 f"{subject.experiment.batch_size} examples in place of "
                 f"{experiment.batch_size:,}, one device.")
    folder.mkdir(parents=True, exist_ok=True)
    page.save(folder / "check.html", document(title, findings, subject, notes))
    console.print(f"{counts['pass']} passed, {counts['warn']} to look at, {counts['FAIL']} failed, "
                  f"{counts['-']} do not apply, in {time.perf_counter() - began:.0f} s; with "
                  f"pictures of the inputs: {folder / 'check.html'}", soft_wrap=True, markup=False)
    return int(counts["FAIL"] > 0)


def table(findings: Mapping[str, tuple[Finding, float]]) -> Table:
    """What was found, the failures last, where they are seen."""
    shown = Table("check", "verdict", "measured", "expected", box=None, pad_edge=False)
    shown.columns[0].no_wrap = True
    order = ("-", "pass", "warn", "FAIL")
    for name, (finding, _) in sorted(findings.items(), key=lambda x: order.index(x[1][0].verdict)):
        measured = finding.look_at if finding.verdict == "-" else finding.measured
        shown.add_row(*map(_plain, (name, finding.verdict, measured, finding.expected)),
                      style=STYLES[finding.verdict])
    return shown


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


# The page.


def document(title: str, findings: Mapping[str, tuple[Finding, float]], subject: Subject,
             notes: Sequence[str]) -> str:
    """check.html: the table, with the reason of each check, its curves, and what the network
    sees."""
    docs = checks(subject.task)
    rows = []
    for name, (finding, seconds) in sorted(
            findings.items(), key=lambda x: ("FAIL", "warn", "pass", "-").index(x[1][0].verdict)):
        why = " ".join((docs[name].__doc__ or "").split())
        rows.append(
            f'<tr><td class=why><b>{page.escaped(name)}</b><br>{page.escaped(why)}</td>'
            + page.cell(None, finding.verdict, colour=COLOURS[finding.verdict])
            + "".join(f"<td class=said>{page.escaped(x)}</td>" for x in (
                finding.measured, finding.expected, finding.look_at))
            + page.cell(seconds, f"{seconds:.1f} s") + "</tr>")
    charts = page.Charts()
    body = f"<h1>{page.escaped(title)}</h1>" + "".join(
        f"<p class=summary>{page.escaped(note)}</p>" for note in notes)
    body += page.section("Findings", page.table(
        "<th>check<th>verdict<th>measured<th>expected<th>look at<th>time", rows))
    body += page.section("What the network sees", seen(subject),
                         "of the training split, after every transform")
    body += "".join(page.section(name, drawn(charts, *curve))
                    for name, curve in subject.curves.items())
    return page.document(title, body, charts, style=PIXELS)


PIXELS = """
.seen { display: flex; flex-wrap: wrap; gap: 10px; }
.seen figure { text-align: center; } .seen img { width: 88px; image-rendering: pixelated; }
.seen pre { margin: 0; max-width: 560px; white-space: pre-wrap; }
main section .scroll { max-height: none; }
td { vertical-align: top; } td.why, td.said { white-space: normal; overflow-wrap: anywhere; }
td.why { width: 40%; font-size: 13px; color: #5c636a; }
td.why b { color: #212529; font-size: 14px; }
td.said { width: 16%; }
"""


def drawn(charts: page.Charts, title: str, x: Sequence[float],
          ys: Mapping[str, Sequence[float]]) -> str:
    """A chart of curves over steps or over learning rates."""
    finite = {name: [v if np.isfinite(v) else None for v in y] for name, y in ys.items()}
    grows = min(x) > 0 and max(x) / min(x) > 300  # A learning rate, not a step.
    shape = page.layout(
        showlegend=len(finite) > 1, xaxis={"type": "log" if grows else "linear", "title": {
            "text": "learning rate" if grows else "step"}},
        yaxis={"type": "log" if page.falls(list(finite.values())) else "linear",
               "title": {"text": "loss"}})
    return charts.add([{"type": "scatter", "mode": "lines", "name": name, "x": list(x)[:len(y)],
                        "y": y} for name, y in finite.items()], shape, 320, title)


def seen(subject: Subject) -> str:
    """The first inputs, decoded back: images as pictures, text by `decode` of the task or the data
    if either has it, anything else as numbers; each with its targets."""
    batch = {k: np.asarray(x) for k, x in subject.batch(subject.train, PICTURES).items()}
    out = []
    for i in range(len(batch["mask"])):
        said = ", ".join(f"{n} {_short(batch[n][i], subject)}" for n in subject.targets
                         if n in batch)
        parts = ""
        for name in subject.inputs:
            x = batch[name][i]
            if x.ndim == 3 and x.shape[-1] in (1, 3):
                low, high = batch[name].min(), batch[name].max()
                parts += f'<img alt="" src="{page.image((x - low) / max(high - low, 1e-9))}">'
            else:
                parts += f"<pre>{page.escaped(_short(x, subject))}</pre>"
        out.append(f"<figure>{parts}<figcaption>{page.escaped(said)}</figcaption></figure>")
    return f"<div class=seen>{''.join(out)}</div>"


def _short(x: np.ndarray, subject: Subject) -> str:
    decode = getattr(subject.task, "decode", getattr(subject.experiment.data, "decode", None))
    if decode is not None and np.issubdtype(x.dtype, np.integer) and x.ndim:
        return str(decode(x))
    if x.ndim == 0:
        return f"{x.item():.4g}" if np.issubdtype(x.dtype, np.floating) else str(x.item())
    values = " ".join(f"{v:.3g}" for v in x.ravel()[:24])
    return values + (" ..." if x.size > 24 else "")
