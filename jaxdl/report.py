"""The page of one run, or of several beside each other: one HTML file that loads nothing.

What is known is read from the run directory, so that a report needs neither the data nor the
checkpoint; what only they can tell (`task.pictures`) is left out with a line where they are gone.
Knows no family of tasks: a task shows itself, see pictures.py.
"""

import contextlib
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl import checkpoint, page
from jaxdl.clock import MEASURED
from jaxdl.data.progress import progress
from jaxdl.display import size
from jaxdl.errors import RunError, UserError, told
from jaxdl.logged import Logged, NothingYet, envelope, read
from jaxdl.page import cell, chart_text, clipped, escaped, finite, section, table, text
from jaxdl.serve import serve

COLOURS = ("#1c5fa8", "#d9480f", "#2b8a3e", "#9c36b5", "#b08900", "#0c8599", "#c2255c", "#5c636a",
           "#66a80f", "#5f3dc4")
POINTS = 2_000     # of a curve, at most
BUDGET = 80_000    # points of all curves
BATCH = 256        # examples at once, at most: the device may be smaller than that of the run
NAMED = 16         # characters of a class on an axis
DIFF = 20_000      # characters of a git diff


# The sections of the page.


def header(run: Logged) -> str:
    """What it is, how it stands, and what was expected."""
    lines = run.record.expected.strip().splitlines() or ["(the experiment has no docstring)"]
    best, metric = run.best(), run.ranked()[0]
    names = sorted((n for n in run.curves if not n.startswith("train/")),
                   key=lambda n: (n != metric, n))
    names += [n for n in run.curves if n.startswith("train/")
              and n.removeprefix("train/") not in (*MEASURED, "learning_rate", "grad_norm")]
    rows = []
    for name in names:
        steps, values = run.curves[name]
        cells = [cell(None, name), cell(finite(values[-1]), shown(values[-1]))]
        if best is not None:
            at = values[np.searchsorted(steps, best[0])] if best[0] in steps else math.nan
            cells.append(cell(finite(at), shown(at)))
        rows.append(f"<tr{' class=best' if name == metric else ''}>{''.join(cells)}</tr>")
    columns = ["metric", f"last (step {run.step:,})"]
    if best is not None:
        columns.append(f"best {'↑' if run.ranked()[1] else '↓'} (step {best[0]:,})")
    numbers = table(heads(columns), rows)
    box = (f"<div class=expected><h3>Expected</h3><p><b>{escaped(lines[0])}</b></p>"
           f"{prose(lines[1:])}</div>")
    again = shlex.join([*program(run), f"--experiment={run.folder}"])
    return section("Result", f"<div class=two>{numbers}{box}</div><p class=note>Again, in a new "
                   f"folder: <code>{escaped(again)}</code></p>")


def prose(lines: Sequence[str]) -> str:
    """Paragraphs of a docstring: lines that are indented stay as they are."""
    parts = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    return "".join(f"<pre>{escaped(textwrap.dedent(part))}</pre>" if part.startswith(" ")
                   else f"<p>{escaped(' '.join(part.split()))}</p>" for part in parts)


def title(run: Logged) -> str:
    """The head of a page of one run."""
    state = "done" if run.over else "going"
    text = (f"<h1>{escaped(run.record.name)} <small class={state}>{escaped(run.status)}</small>"
            f"</h1><p class=summary><code>{escaped(run.folder)}</code></p>")
    return text + stand_in([run])


def stand_in(runs: Sequence[Logged]) -> str:
    found = dict.fromkeys(f"{run.name}: {run.record.stand_in}" if len(runs) > 1
                          else run.record.stand_in for run in runs if run.record.stand_in)
    return "".join(f"<p class=warning><b>Stand-in data.</b> {escaped(x)}. The numbers are those of "
                   "the stand-in.</p>" for x in found)


def program(run: Logged) -> list[str]:
    """The words that start jaxdl, as this run was started."""
    argv = run.launches[-1].get("command") if run.launches else None
    name = Path(str(argv[0])).name if isinstance(argv, list) and argv else "launch.py"
    return ["python", "launch.py"] if name.endswith(".py") else [name]


def shown(value: Any) -> str:
    """A number of a table."""
    number = finite(value)
    if number is None:
        return "-"
    return f"{number:,.0f}" if 1_000 <= abs(number) < 1e15 else f"{number:.4g}"


def heads(names: Iterable[str]) -> str:
    return "".join(f"<th>{escaped(name)}</th>" for name in names)


def overview(runs: Sequence[Logged]) -> str:
    """The table of several runs."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.curves
                                 if not name.startswith("train/")))
    metrics += [n for n in ("train/loss",) if any(n in run.curves for run in runs)]
    rows = []
    for i, run in enumerate(runs):
        best = run.best()
        cells = [f"<td title=\"{escaped(run.folder)}\">{dot(i, len(runs))}{escaped(run.name)}</td>",
                 cell(None, run.record.name), cell(run.step, run.status),
                 *(cell(finite(last), shown(last)) for name in metrics
                   for last in [run.curves[name][1][-1] if name in run.curves else None]),
                 cell(best and best[1], "-" if best is None else
                      f"{shown(best[1])} at step {best[0]:,}", run.ranked()[0] or "")]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    ranking = {run.ranked()[0] for run in runs}
    best = f"best {ranking.pop()}" if len(ranking) == 1 and ranking != {None} else "best"
    expected = dict.fromkeys((run.record.expected.strip().splitlines() or [""])[0] for run in runs)
    return section("Runs", table("".join(f"<th><button>{escaped(n)}</button></th>" for n in (
        "run", "experiment", "status", *metrics, best)), rows) + "".join(
            f"<p class=note>Expected: {escaped(line)}</p>" for line in expected if line),
        "the last value of each metric")


def colour(i: int, count: int) -> str:
    return COLOURS[i] if count <= len(COLOURS) else f"hsl({i * 360 / count:.0f},65%,42%)"


def dot(i: int, count: int) -> str:
    return f'<i class=dot style="background:{colour(i, count)}"></i>'


def curves(runs: Sequence[Logged], charts: page.Charts, data: dict[str, Any]) -> str:
    """A chart for each metric: what was measured in training and in evaluation, of every run."""
    metrics: dict[str, list[tuple[int, str, str]]] = {}
    for i, run in enumerate(runs):
        for name in run.curves:
            part, _, metric = name.partition("/")
            metrics.setdefault(metric or part, []).append((i, part if metric else "", name))
    # What was measured once is no curve; the table above says it.
    metrics = {metric: found for metric, found in metrics.items() if any(
        len(runs[i].curves[name][0]) > 1 for i, _, name in found)} or metrics
    first = [n.partition("/")[2] for run in runs if (n := run.ranked()[0])]
    last = ("grad_norm", "learning_rate", *MEASURED)
    order = sorted(metrics, key=lambda m: (
        m in MEASURED, m.split("/")[0] in last, m not in first, m != "loss", m))
    parts = list(dict.fromkeys(p for m in order for _, p, _ in metrics[m]))
    parts.sort(key=lambda part: part == "train")
    total = sum(len(found) for found in metrics.values())
    points = min(POINTS, max(60, BUDGET // max(total, 1)))
    drawn = {}
    for metric in order:
        series = []
        for i, part, name in metrics[metric]:
            steps, values = envelope(*runs[i].curves[name], points)
            series.append({"run": i, "part": parts.index(part), "x": steps.tolist(),
                           "y": [finite(v) for v in values.tolist()]})
        plain = metric.split("/")[0] in ("learning_rate", *MEASURED)  # from 0 on, never to a log
        known = [[v for v in s["y"] if v is not None] or [None] for s in series]
        data.setdefault("curves", {})[f"{charts.prefix}{len(charts.charts)}"] = {
            "series": series, "log": not plain and page.falls(known), "zero": plain,
            "large": max((v for found in known for v in found if v is not None), default=0) >= 1e6}
        drawn[metric] = charts.add([], page.layout(
            title={"text": chart_text(metric), "x": 0.01, "xanchor": "left", "font": {"size": 14}},
            margin={"l": 60, "r": 12, "t": 34, "b": 40}), 220 if metric.split("/")[0] in last
            else 300)
    clock = []
    for run in runs:
        steps, seconds = run.seconds()
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 400)).astype(int))
        clock.append({"steps": [0, *steps[chosen].tolist()], "seconds": [
            0, *seconds[chosen].tolist()]})
    data["runs"] = [{"name": chart_text(run.name, 40), "colour": colour(i, len(runs)),
                     "batch": finite(run.leaf("batch_size")) or 1, "clock": clock[i]}
                    for i, run in enumerate(runs)]
    data["parts"] = [chart_text(part) for part in parts]
    data["colours"] = COLOURS
    several = len(runs) > 1
    legend = "".join(f'<button class=key data-run="{i}" aria-pressed=true>{dot(i, len(runs))}'
                     f"{escaped(clipped(run.name, 40))}</button>" for i, run in enumerate(runs)
                     ) if several else ""
    for i, part in enumerate(parts):
        look = (f'style="border-top:2px {("solid", "dotted", "dashed")[dashing(parts, i)]} #212529"'
                if several else f'style="border-top:2px solid {COLOURS[i % len(COLOURS)]}"')
        legend += (f'<button class=key data-part="{i}" aria-pressed=true><i class=line {look}></i>'
                   f"{escaped(part or 'value')}</button>")
    controls = (
        "<div class=controls><label>x <select id=axis><option value=step>step<option "
        "value=examples>examples<option value=time>training time</select></label>"
        "<label>smoothing <input id=smooth type=range min=0 max=0.98 step=0.02 value=0> "
        "<output id=amount>0</output></label><label>y <select id=scale><option value=auto>auto"
        "<option value=log>log<option value=linear>linear</select></label>"
        f"<span class=legend>{legend}</span></div>")
    main = "".join(drawn[m] for m in order if m.split("/")[0] not in last)
    rest = "".join(drawn[m] for m in order if m.split("/")[0] in last)
    return section("Curves", f"{controls}<div class=curves>{main}</div>"
                   + (f"<h3>Optimisation and speed</h3><div class='curves small'>{rest}</div>"
                      if rest else ""))


def dashing(parts: Sequence[str], i: int) -> int:
    """How the line of a part looks where runs have the colours: evaluation solid, training dotted,
    another evaluation dashed."""
    if parts[i] == "train":
        return 1 if len(parts) > 1 else 0
    return min(i, 1) * 2


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of plain JSON: what holds no object is a leaf; the class of one is at its own
    path."""
    if isinstance(node, Mapping):
        if "_" in node:
            yield path or "experiment", str(node["_"]).rpartition(":")[2]
        for name, child in node.items():
            if name != "_":
                yield from leaves(child, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list) and any(isinstance(child, Mapping | list) for child in node):
        for i, child in enumerate(node):
            yield from leaves(child, f"{path}.{i}")
    else:
        yield path, node


def environment(run: Logged) -> dict[str, Any]:
    """The newest launch as names and values."""
    launch: Mapping[str, Any] = run.launches[-1] if run.launches else {}

    def part(name: str) -> Mapping[str, Any]:
        found = launch.get(name)
        return found if isinstance(found, Mapping) else {}

    devices, diff = launch.get("devices"), part("git").get("diff")
    return {"jaxdl": launch.get("jaxdl"), "source of jaxdl": launch.get("source"),
            "Python": launch.get("python"), **part("versions"),
            "platform": launch.get("platform"), "git commit": part("git").get("commit"),
            "uncommitted changes": f"{len(str(diff)):,} characters" if diff else None,
            "devices": ", ".join(map(str, devices)) if isinstance(devices, list) else devices,
            **part("flags")}


def differences(runs: Sequence[Logged]) -> str:
    """What is not the same in all runs: leaves, code, data, environment."""
    groups = {
        "configuration": [dict(leaves(run.record.experiment)) for run in runs],
        "code and data": [{**{f"digest of {p}": d for p, d in run.record.code.items()},
                           "fingerprint of the data": run.record.fingerprint,
                           "stand-in": run.record.stand_in,
                           "experiment": run.record.name} for run in runs],
        "environment": [environment(run) for run in runs]}
    rows = []
    for group, values in groups.items():
        paths = dict.fromkeys(path for found in values for path in found)
        differing = [p for p in paths if len({page.key(v.get(p, MISSING)) for v in values}) > 1]
        if differing:
            rows.append(f"<tr><th colspan={len(runs) + 1} class=group>{group}</th></tr>")
        rows += ["<tr>" + cell(None, path) + "".join(
            cell(None, clipped(text(v.get(path, MISSING)), 60), text(v.get(path, MISSING)))
            for v in values) + "</tr>" for path in differing]
    if not rows:
        return section("Differences", "<p>The runs differ in nothing that is recorded.</p>")
    head = "<th></th>" + "".join(f"<th>{dot(i, len(runs))}{escaped(clipped(run.name, 40))}</th>"
                                 for i, run in enumerate(runs))
    return section("Differences", table(head, rows), "what is the same in all is left out")


MISSING = type("Missing", (), {"__str__": lambda self: "-"})()


def cost(runs: Sequence[Logged]) -> str:
    """Time and memory."""
    def row(name: str, values: Sequence[float | None], how: Callable[[float], str]) -> str:
        if all(v is None for v in values):
            return ""
        return "<tr>" + cell(None, name) + "".join(
            cell(v, "-" if v is None else how(v)) for v in values) + "</tr>"

    rates = [run.median("train/examples_per_second") for run in runs]
    batches = [finite(run.leaf("batch_size")) for run in runs]
    files = [sum(int(f[0]) for f in run.manifest.get("files", {}).values()) or None for run in runs]
    peaks = [max((v for v in run.curves.get("train/memory_peak", ((), ()))[1] if v == v),
                 default=None) for run in runs]
    rows = [
        row("parameters", [sum(math.prod(s) for _, s, _ in parameters(run)) or None
                           for run in runs], lambda v: f"{v:,.0f}"),
        row("examples a second, median", rates, lambda v: f"{v:,.0f}"),
        row("milliseconds a step", [1e3 * b / r if b and r else None
                                    for b, r in zip(batches, rates, strict=True)],
            lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}"),
        row("training time, without compilation and evaluation",
            [float(s[-1]) if len(s := run.seconds()[1]) else None for run in runs], duration),
        row("waiting for data, median", [run.median("train/data_wait") for run in runs],
            lambda v: f"{v:.1%}"),
        row("GFLOP a second, median", [run.median("train/flops_per_second") for run in runs],
            lambda v: f"{v / 1e9:,.3g}" if v < 1e12 else f"{v / 1e9:,.0f}"),
        row("of the peak FLOP a second, median", [run.median("train/mfu") for run in runs],
            lambda v: f"{v:.1%}"),
        row("most memory ever in use", [None if p is None else float(p) for p in peaks],
            lambda v: size(int(v))),
        row("a checkpoint on disk", files, lambda v: size(int(v)))]
    head = heads(["", *(clipped(run.name, 40) for run in runs)]) if len(runs) > 1 else ""
    return section("Time and memory", table(head, [r for r in rows if r]))


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def parameters(run: Logged) -> list[tuple[str, list[int], str]]:
    """(path, shape, type) of the parameters, by the manifest of the newest checkpoint."""
    found = []
    for path, (shape, kind) in run.manifest.get("arrays", {}).items():
        parts = path.split("/")
        if parts[0] == "state" and {"params", "frozen"} & set(parts[1:-1]) and not {
                "opt_state", "ema"} & set(parts):
            mark = " (frozen)" if "frozen" in parts else ""
            found.append(("/".join(p for p in parts[1:] if p not in ("params", "frozen")) + mark,
                          list(shape), kind))
    return found


def modules(run: Logged) -> str:
    """Parameters by module, each array below its module."""
    found = parameters(run)
    if not found:
        return ""
    groups: dict[str, list[tuple[str, list[int], str]]] = {}
    for path, shape, kind in found:
        groups.setdefault(path.split("/")[0].removesuffix(" (frozen)"), []).append(
            (path, shape, kind))
    total = sum(math.prod(shape) for _, shape, _ in found)
    rows = []
    for name, arrays in groups.items():
        count = sum(math.prod(shape) for _, shape, _ in arrays)
        bar = f'<i class=bar style="width:{120 * count / max(total, 1):.1f}px"></i>'
        rows.append(f"<tr>{cell(None, name)}<td class=number>{len(arrays)}<td class=number>"
                    f"{count:,}<td>{bar}{count / max(total, 1):.1%}</tr>")
    rows.append(f"<tr class=total><td>total<td class=number>{len(found)}<td class=number>{total:,}"
                "<td></tr>")
    every = [f"<tr>{cell(None, path)}{cell(None, ' x '.join(map(str, shape)) or 'scalar')}"
             f"{cell(None, kind)}<td class=number>{math.prod(shape):,}</tr>"
             for path, shape, kind in found]
    return section("Parameters", table(
        "<th>module<th class=number>arrays<th class=number>parameters<th>share", rows)
        + f"<details><summary>All {len(found)} arrays</summary>"
        + table("<th>path<th>shape<th>type<th class=number>numbers", every) + "</details>")


def origin(run: Logged) -> str:
    """The environment, the launches, the overrides and the whole configuration."""
    rows = [f"<tr>{cell(None, name)}<td class=reason>{escaped(text(value))}</td></tr>"
            for name, value in environment(run).items() if value is not None]
    rows += [f"<tr>{cell(None, name)}{cell(None, text(value))}</tr>" for name, value in [
        ("fingerprint of the data", run.record.fingerprint),
        *((f"digest of {path}", digest) for path, digest in run.record.code.items())]]
    launches = [f"<tr>{cell(None, text(x.get('time', '-')))}<td class=number>"
                f"{escaped(text(x.get('from_step', '-')))}<td class=reason><code>"
                f"{escaped(command(x.get('command')))}</code></tr>" for x in run.launches]
    overrides = "".join(f"<code>{escaped(line)}</code> " for line in run.overrides.splitlines())
    config = [f"<tr>{cell(None, path)}<td class=reason>{escaped(text(value))}</td></tr>"
              for path, value in leaves(run.record.experiment)]
    git = run.launches[-1].get("git") if run.launches else None
    diff = str(git.get("diff") or "") if isinstance(git, Mapping) else ""
    parts = [f"<p>Overrides: {overrides or 'none'}</p>",
             table("<th>launched<th class=number>from step<th>command", launches),
             f"<details><summary>Environment</summary>{table('', rows)}</details>",
             f"<details><summary>Configuration, {len(config)} leaves</summary>"
             f"{table('', config)}</details>"]
    if diff:
        more = "" if len(diff) <= DIFF else f"\n... {len(diff) - DIFF:,} more characters"
        parts.append("<details><summary>Uncommitted changes</summary>"
                     f"<pre>{escaped(diff[:DIFF] + more)}</pre></details>")
    return section("How it came about", "".join(parts))


def command(argv: Any) -> str:
    """What was typed, as it can be typed again."""
    if not isinstance(argv, list) or not argv:
        return "-"
    words = [str(word) for word in argv]
    first = ["python", words[0]] if words[0].endswith(".py") else [Path(words[0]).name]
    return shlex.join([*first, *words[1:]])


# What the task shows.


def pictures(run: Logged, modules: Sequence[str], tsne: bool, charts: page.Charts) -> str:
    """The sections of `task.pictures`, at the best checkpoint if there is one; where they cannot be
    made, a line that says why."""
    found: list[str] = []
    step = None
    try:
        step, shows = shown_by_task(run, modules, tsne)
        for picture in shows:
            found.append(drawn(picture, charts))
        why = "" if found else "the task shows none (it has no method `pictures`)."
    except (UserError, RunError) as error:
        why = str(error)
    except Exception as error:  # A task's own code: the rest of the page does not depend on it.
        why = told(error)
    if why:
        found.append(section("Pictures", f"<p class=note>{'No further' if found else 'No'} "
                             f"pictures: {escaped(clipped(why, 600))}</p>"))
    at = "" if step is None else (
        f"<p class=part>Pictures of the checkpoint of step {step:,}"
        f"{' (best)' if step == run.progress.get('best_step') else ''}</p>")
    return at + "".join(found)


def shown_by_task(run: Logged, modules: Sequence[str],
                  tsne: bool) -> tuple[int | None, Iterator[Any]]:
    """(step of the checkpoint, pictures one by one)."""
    from jaxdl import compilation, config, parallel, train
    from jaxdl.experiment import Experiment, Mesh
    from jaxdl.pictures import Material

    experiment = config.from_json(run.record.experiment, modules=modules)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{run.folder}/config.json: holds no experiment.")
    if not hasattr(experiment.task, "pictures"):
        return None, iter(())
    steps = checkpoint.committed(run.folder / "checkpoints")
    best = run.progress.get("best_step")
    step = checkpoint.select(run.folder, "best" if best in steps else "last")
    experiment.data.prepare()
    fingerprint = experiment.data.fingerprint()
    if run.record.fingerprint not in (None, fingerprint):
        raise UserError(f"the data has changed since ({run.record.fingerprint} then, {fingerprint} "
                        "now).")
    # One device is enough, wherever it was trained.
    experiment = replace(experiment, mesh=Mesh(data=1), parallel="jit")
    opened = train.splits(experiment)
    compilation.keep_programs()
    with progress("reading the checkpoint", None):
        _, state = train.restored(experiment, run.folder, step, opened("train"), parallel.arrange(
            experiment.mesh, experiment.rules))
    split = next((s for e in experiment.evals.values()
                  if isinstance(s := getattr(e, "split", None), str)), "train")

    def one_by_one() -> Iterator[Any]:
        with progress("pictures", None) as advance:
            yield from experiment.task.pictures(state, Material(  # type: ignore
                source=opened, split=split, batch_size=min(experiment.batch_size, BATCH),
                seed=experiment.seed,
                names=getattr(experiment.data, "names", None), tsne=tsne, advance=advance,
                data=experiment.data))

    return step, one_by_one()


def drawn(picture: Any, charts: page.Charts) -> str:
    """The section of one picture."""
    draw = {"Images": images, "Matrix": matrix, "Points": points, "Texts": texts}.get(
        type(picture).__name__)
    if draw is None:
        raise UserError(f"the task shows a {type(picture).__name__}: expected Images, Matrix, "
                        "Points or Texts of jaxdl.pictures.")
    note = f"<p class=note>{escaped(picture.note)}</p>" if picture.note else ""
    return section(picture.title, f"{draw(picture, charts)}{note}")


def images(picture: Any, charts: page.Charts) -> str:
    captions = [*picture.captions, *[""] * (len(picture.images) - len(picture.captions))]
    small = max(picture.images.shape[1:3], default=0) < 12
    cells = "".join(
        f'<figure><img alt="{escaped(caption)}" src="{page.image(image)}">'
        f"{f'<figcaption>{escaped(caption)}</figcaption>' if caption else ''}</figure>"
        for image, caption in zip(picture.images, captions, strict=True))
    if picture.heads:
        top = "".join(f"<div class=head>{escaped(head)}</div>" for head in picture.heads)
        return (f'<div class="pictures table" style="grid-template-columns:'
                f'repeat({len(picture.heads)},minmax(0,130px))">{top}{cells}</div>')
    kind = "pictures tiny" if small and not picture.captions else "pictures"
    return f'<div class="{kind}">{cells}</div>'


def matrix(picture: Any, charts: page.Charts) -> str:
    values = np.asarray(picture.values, float)
    share = values / np.maximum(values.sum(1, keepdims=True), 1e-30)
    rows, columns = ([chart_text(clipped(name, NAMED)) for name in names]
                     for names in (picture.rows, picture.columns))
    few, longest = len(rows) <= 20, max(map(len, (*rows, *columns)), default=1)
    angle, left = (0 if longest < 5 else -60), 50 + 7 * longest
    top = 55 if longest < 5 else 50 + 7 * longest
    data = {"type": "heatmap", "z": share.tolist(), "customdata": values.tolist(), "xgap": 1,
            "ygap": 1, "zmin": 0, "zmax": 1, "colorscale": [
                [0, "#f8f9fa"], [0.02, "#dbe7f5"], [0.2, "#7fb0e0"], [1, "#1c5fa8"]],
            "hovertemplate": f"{chart_text(picture.axes[0])} %{{y}}, {chart_text(picture.axes[1])}"
                             " %{x}: %{customdata:,} (%{z:.1%} of the row)<extra></extra>",
            "x": list(range(len(columns))), "y": list(range(len(rows))), "showscale": False}
    if few:
        data |= {"text": [[f"{v:,.0f}" if v else "" for v in row] for row in values],
                 "texttemplate": "%{text}"}
    across = {"tickvals": list(range(len(columns))), "ticktext": columns, "showgrid": False,
              "showline": False, "ticks": "outside", "tickcolor": "white", "ticklen": 5}
    step = 44 if few else 22
    return charts.add([data], page.layout(
        xaxis={**across, "range": [-0.5, len(columns) - 0.5], "tickangle": angle, "side": "top",
               "title": {"text": chart_text(picture.axes[1])}},
        yaxis={**across, "tickvals": list(range(len(rows))), "ticktext": rows,
               "range": [len(rows) - 0.5, -0.5],
               "title": {"text": chart_text(picture.axes[0])}},
        width=left + 20 + step * len(columns), margin={"l": left, "r": 20, "t": top, "b": 10}),
        top + 10 + step * len(rows))


def texts(picture: Any, charts: page.Charts) -> str:
    captions = [*picture.captions, *[""] * (len(picture.texts) - len(picture.captions))]

    def part(text: str, shade: float) -> str:
        if not shade > 0:
            return escaped(text)
        return (f'<span style="background:rgba(194,90,30,{min(shade, 1.):.2f})">{escaped(text)}'
                "</span>")

    return "".join(
        f"{f'<p class=part>{escaped(caption)}</p>' if caption else ''}<pre class=text>"
        f"{''.join(part(*p) for p in parts)}</pre>"
        for caption, parts in zip(captions, picture.texts, strict=True))


def points(picture: Any, charts: page.Charts) -> str:
    places, names = np.asarray(picture.places, float), [str(g) for g in picture.groups]
    order = list(dict.fromkeys(names))
    order.sort(key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    hover = [*picture.hover, *names[len(picture.hover):]]
    data = []
    for i, group in enumerate(order):
        mine = [k for k, name in enumerate(names) if name == group]
        data.append({"type": "scatter", "mode": "markers", "name": chart_text(group, 24),
                     "x": places[mine, 0].tolist(), "y": places[mine, 1].tolist(),
                     "text": [chart_text(hover[k], 100) for k in mine], "hoverinfo": "text",
                     "marker": {"size": 6, "opacity": 0.75, "color": colour(i, len(order)),
                                "line": {"width": 0}}})
    return charts.add(data, page.layout(
        xaxis={"title": {"text": chart_text(picture.axes[0])}, "zeroline": False},
        yaxis={"title": {"text": chart_text(picture.axes[1])}}, showlegend=len(order) <= 30,
        legend={"font": {"size": 12}, "itemsizing": "constant"},
        margin={"l": 60, "r": 15, "t": 15, "b": 50}), 500)


# The whole.


def run(folders: Sequence[Path], options: Any, modules: Sequence[str]) -> None:
    """Writes the report of these runs, or serves it.

    Args:
      folders: run directories.
      options: `cli.ReportOptions`.
      modules: whose dataclasses config.json may name, beside jaxdl's own.
    """
    made: dict[tuple[Path, int], tuple[str, page.Charts]] = {}

    def page_of(live: bool) -> str:
        runs = [read(folder, name) for folder, name in zip(folders, names(folders), strict=True)]

        def shows(charts: page.Charts) -> str:
            if live and not runs[0].over:
                return section("Pictures", "<p class=note>They come when training has ended.</p>")
            at = folders[0], int(runs[0].manifest.get("step", -1))
            if at not in made:
                mine = page.Charts("picture")
                made[at] = pictures(runs[0], modules, options.tsne, mine), mine
            charts.charts |= made[at][1].charts
            return made[at][0]

        going = live and not all(run.over for run in runs)
        return document(runs, shows if len(runs) == 1 else None, reload=10 if going else None)

    if options.serve:
        with contextlib.suppress(NothingYet):  # A mistake is told once, here.
            for folder in folders:
                read(folder)
        return serve(lambda: page_of(True), options.port)
    path = Path(options.output) if options.output else (
        folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    whole = page_of(False)
    try:
        page.save(path, whole)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); --output=FILE names "
                        "another place.") from error
    print(path)


def names(folders: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other has."""
    parts = [folder.resolve().parts for folder in folders]
    return [next(("/".join(own[-n:]) for n in range(1, len(own))
                  if sum(other[-n:] == own[-n:] for other in parts) == 1), str(folders[i]))
            for i, own in enumerate(parts)]


def document(runs: Sequence[Logged], shows: Callable[[page.Charts], str] | None = None, *,
             reload: int | None = None) -> str:
    """The page.

    Args:
      runs: one, or several to compare.
      shows: makes the pictures.
      reload: seconds after which the page asks for itself again; None for never.
    """
    charts, data = page.Charts(), {}
    missing = "".join(f"<p class=note>{escaped(run.name)}: {escaped(line)}</p>"
                      for run in runs for line in run.missing)
    one = runs[0] if len(runs) == 1 else None
    if one:
        head = one.record.name
        parts = [title(one), missing, header(one), curves(runs, charts, data)]
        parts += [shows(charts)] if shows else []
        parts += [modules(one), cost(runs), origin(one)]
    else:
        head = f"{len(runs)} runs compared"
        parts = [f"<h1>{head}</h1>", stand_in(runs), missing, overview(runs),
                 curves(runs, charts, data), differences(runs), cost(runs),
                 "<p class=note>The report of a single run has its pictures and parameters.</p>"]
    again = "" if reload is None else (f"<script>setTimeout(() => location.reload(), "
                                       f"{1000 * reload});</script>")
    return page.document(head, "\n".join(parts) + again, charts, data=data, script=SCRIPT,
                         style=STYLE)


STYLE = """
h1 small { font-size: 15px; margin-left: 8px; }
h1 small.done { color: #2b8a3e; } h1 small.going { color: #1c5fa8; }
h3 { font-size: 15px; margin: 12px 0 6px; }
.two { display: grid; grid-template-columns: minmax(0, auto) minmax(0, 1fr); gap: 28px; }
.expected { border-left: 3px solid #dee2e6; padding-left: 16px; }
.expected h3 { margin-top: 0; color: #5c636a; } .expected p, .expected pre { margin: 0 0 8px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace;
  margin: 0; color: #495057; }
.warning { background: #fff3bf; border: 1px solid #f0c000; border-radius: 8px; padding: 8px 14px;
  margin: 14px 0 0; }
.part { color: #5c636a; margin: 22px 2px -8px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr));
  gap: 10px 18px; }
.curves.small { grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.controls { display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center; font-size: 14px;
  margin-bottom: 8px; position: sticky; top: 0; background: white; z-index: 5; padding: 4px 0; }
.controls output { display: inline-block; min-width: 30px; font-variant-numeric: tabular-nums; }
.controls input { vertical-align: middle; width: 120px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.key { all: unset; cursor: pointer; white-space: nowrap; }
.key[aria-pressed=false] { opacity: 0.35; }
.key:focus-visible { outline: 2px solid #1c5fa8; border-radius: 3px; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
.line { display: inline-block; width: 22px; margin-right: 6px; vertical-align: middle; }
td .bar { width: auto; height: 9px; border-radius: 2px; background: #7fb0e0; }
.number { text-align: right; }
tr.total td { font-weight: 600; border-top: 2px solid #ced4da; }
th.group { position: static; padding-top: 12px; color: #5c636a; }
details { margin-top: 10px; } summary { cursor: pointer; color: #1c5fa8; }
details .scroll, details pre { margin-top: 6px; max-height: 436px; overflow: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
  gap: 12px 10px; }
.pictures.tiny { grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)); gap: 8px; }
.pictures.table { grid-template-columns: none; gap: 8px; }
pre.text { margin: 0 0 14px; padding-left: 10px; border-left: 3px solid #dee2e6;
  max-width: 900px; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6; }
.part + pre.text { margin-top: 14px; }
.pictures figure { overflow: visible; }
.pictures img { width: 100%; max-width: 130px; image-rendering: pixelated; display: block;
  border-radius: 3px; background: #e9ecef; }
.pictures figcaption { margin: 3px 0 0; font-size: 12px; line-height: 1.3; }
.head { font-size: 12px; font-weight: 600; color: #495057; align-self: end; }
@media (max-width: 760px) { .two { grid-template-columns: 1fr; } }
"""
SCRIPT = r"""
const hidden = {run: new Set(), part: new Set()}, control = id => document.getElementById(id);
const several = page.runs.length > 1, dashes = ["solid", "dot", "dash"];
const style = part => page.parts[part] === "train" ? +(page.parts.length > 1)
  : 2 * Math.min(part, 1);
function seconds({steps, seconds: known}, step) {
  let i = steps.findIndex(s => s >= step);
  if (i < 0) i = steps.length - 1;
  if (i < 1) return steps.length > 1 ? 0 : null;
  const share = (step - steps[i - 1]) / (steps[i] - steps[i - 1]);
  return known[i - 1] + share * (known[i] - known[i - 1]);
}
function smoothed(values, weight) {  // an exponential mean, divided by the weight it has so far
  let sum = 0, total = 0;
  return values.map(v => {
    if (v === null) return null;
    sum = weight * sum + (1 - weight) * v;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}
function traces(chart, axis, weight, unit) {
  const found = [];
  for (const {run, part, x, y} of chart.series) {
    if (hidden.run.has(run) || hidden.part.has(part)) continue;
    const {name, colour, batch, clock} = page.runs[run];
    const at = axis === "step" ? x : axis === "examples" ? x.map(s => s * batch)
      : x.map(s => { const t = seconds(clock, s); return t === null ? null : t / unit; });
    const color = several ? colour : page.colours[part % page.colours.length];
    const label = [several && name, page.parts[part]].filter(Boolean).join(", ");
    const few = y.length <= (page.parts[part] === "train" ? 4 : 40);
    const trace = {type: "scatter", x: at, name: label, connectgaps: false, 
      mode: few ? "lines+markers" : "lines", marker: {size: 5, color}, customdata: x,
      hovertemplate: `${label}<br>step %{customdata:,}: %{y:.5g}<extra></extra>`,
      line: {color, width: 1.8, dash: several ? dashes[style(part)] : "solid"}};
    if (weight > 0 && y.length > 5) {
      found.push({...trace, y, opacity: 0.22, hoverinfo: "skip", hovertemplate: null});
      found.push({...trace, y: smoothed(y, weight)});
    } else found.push({...trace, y});
  }
  return found;
}
function update() {
  const axis = control("axis").value, weight = +control("smooth").value;
  const scale = control("scale").value;
  control("amount").textContent = weight.toFixed(2).replace(/\.?0+$/, "");
  const longest = Math.max(0, ...page.runs.map(r => r.clock.seconds.at(-1)));
  const [unit, word] = longest > 7200 ? [3600, "hours"] : longest > 180 ? [60, "minutes"]
    : [1, "seconds"];
  for (const [id, chart] of Object.entries(page.curves)) {
    const {layout} = page.charts[id];
    const log = scale === "log" || (scale === "auto" && chart.log);
    layout.xaxis = {...layout.xaxis, tickformat: axis === "time" ? "" : ",", title: {text:
      axis === "time" ? `training time, ${word}` : axis, standoff: 6}};
    layout.yaxis = {...layout.yaxis, type: log ? "log" : "linear", dtick: log ? "D2" : null,
                    tickformat: chart.large ? "~s" : log ? "~g" : "", autorange: true,
                    rangemode: chart.zero ? "tozero" : "normal"};
    if (log && spread(chart.series) > 3) layout.yaxis.dtick = 1;
    layout.uirevision = `${axis} ${log}`;
    page.charts[id].data = traces(chart, axis, weight, unit);
    if (drawn) Plotly.react(id, page.charts[id].data, layout);
  }
}
function spread(series) {  // powers of ten
  const known = series.flatMap(s => s.y).filter(v => v > 0);
  return Math.log10(known.reduce((a, b) => Math.max(a, b), 0)
    / known.reduce((a, b) => Math.min(a, b), Infinity));
}
let drawn = false;
update();
drawn = true;
for (const id of ["axis", "smooth", "scale"]) control(id).oninput = update;
for (const button of document.querySelectorAll(".key")) button.onclick = () => {
  const kind = button.dataset.run ? "run" : "part", i = +button.dataset[kind];
  if (!hidden[kind].delete(i)) hidden[kind].add(i);
  button.setAttribute("aria-pressed", !hidden[kind].has(i));
  update();
};
"""
