"""The page of a sweep: one HTML file with the tables and charts of its trials, which loads nothing.

Whatever a trial says is escaped, in HTML and in the JSON of the charts. Imports no jax.
"""

import math
import numbers
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl import page
from jaxdl.page import (
    cell,
    chart_text,
    clipped,
    escaped,
    falls,
    finite,
    key,
    layout,
    section,
    table,
    text,
)

STATES = {"done": "#2b8a3e", "failed": "#c92a2a", "pruned": "#b35c00", "running": "#1c5fa8",
          "pending": "#767d86"}
BEST, GOOD, BAD = "#d9480f", (28, 95, 168), (200, 210, 222)
DRAWN = 200         # trials whose curves are drawn
POINTS = 200        # of a curve
BUDGET = 300_000    # points of all curves
TREES, REPEATS = 100, 5


@dataclass(frozen=True, kw_only=True)
class PageTrial:
    """One trial.

    Attributes:
      number: of the trial.
      overrides: values of the leaves that it sets, or plain JSON of a sub-tree, by dotted path.
      state: pending, running, done, pruned or failed.
      value: of the ranking metric, the best so far.
      step: the newest with results.
      results: the newest value of each metric.
      reason: why it failed or was pruned.
      seconds: that it took.
      curves: (step, value) in order, by metric.
    """

    number: int
    overrides: Mapping[str, Any]
    state: str
    value: float | None
    step: int
    results: Mapping[str, float | None]
    reason: str
    seconds: float
    curves: Mapping[str, Sequence[tuple[int, float | None]]]


# Values and their text.


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The shortest suffix of each dotted path that no other path has.

    >>> short_names(["model.width", "head.width", "optimizer.rate"])
    {'model.width': 'model.width', 'head.width': 'head.width', 'optimizer.rate': 'rate'}
    """
    parts = {path: path.split(".") for path in paths}
    return {path: next((".".join(own[-n:]) for n in range(1, len(own))
                        if sum(other[-n:] == own[-n:] for other in parts.values()) == 1), path)
            for path, own in parts.items()}


# What the page shows.


@dataclass(frozen=True)
class Axis:
    """Where values lie on an axis: the position of each, and ticks (position, text)."""

    at: list[float]
    ticks: list[tuple[float, str]]

    @property
    def range(self) -> list[float]:
        low, high = min(self.at, default=0), max(self.at, default=0)
        margin = (high - low) * 0.06 or 0.5
        return [low - margin, high + margin]


MISSING = type("Missing", (), {"__str__": lambda self: "-"})()


def axis(values: Sequence[Any], log: bool | None = None) -> Axis:
    """The axis of a leaf's values.

    Numbers are to scale: to that of the logarithm if none is negative and those above 0 span more
    than a factor of 20, unless they are integers or many, and lie evenly. What is no finite number
    stands beside them, and so does 0 on the logarithm. Other leaves are categories.

    Args:
      values: of each trial.
      log: whether to the scale of the logarithm, if that is known.
    """
    floats = [finite(v) for v in values]
    found = sorted({x for x in floats if x is not None})
    positive = [x for x in found if x > 0]
    if log is None:
        few = len(positive) < 10 and any(isinstance(v, float) for v in values)
        log = (len(positive) > 1 and found[0] >= 0 and positive[-1] / positive[0] > 20
               and (few or float(np.median(positive)) < positive[-1] / 4))
    if log:
        floats = [x if x is not None and x > 0 else None for x in floats]
        found = positive
    others = {key(v): v for v, x in zip(values, floats, strict=True) if x is None}
    scale = math.log10 if log else float
    low, high = (scale(found[0]), scale(found[-1])) if found else (0., 0.)
    span = high - low
    if not max(1e-9 * high, -1e-9 * low, 1e-300) < span < math.inf or len(others) > 6:
        kinds = {key(v): v for v in values}
        order = sorted(kinds, key=lambda k: (k[0], k[1] if finite(k[1]) is not None else math.inf,
                                             text(kinds[k])))
        place = {k: float(i) for i, k in enumerate(order)}
        ticks = [(place[k], clipped(text(kinds[k]), 24)) for k in order]
        return Axis([place[key(v)] for v in values], ticks[::-(-len(ticks) // 20)])
    place, ticks = {}, []
    for x in found if len(found) <= 8 else round_numbers(found[0], found[-1], log):
        if not ticks or scale(x) - ticks[-1][0] > 0.07 * span:
            ticks.append((scale(x), text(int(x) if x == int(x) else x)))
    for k in sorted(others, key=lambda k: text(others[k])):
        above = isinstance(others[k], numbers.Real) and others[k] > 1
        place[k] = high + 0.2 * span if above else low - 0.2 * span
        low, high = min(low, place[k]), max(high, place[k])
        ticks.append((place[k], clipped(text(others[k]), 24)))
    return Axis([place[key(v)] if x is None else scale(x)
                 for v, x in zip(values, floats, strict=True)], sorted(ticks))


def round_numbers(low: float, high: float, log: bool) -> list[float]:
    """About six round numbers from `low` to `high`."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = -(-(last - first) // 6)
        digits = (1, 2, 5) if last - first <= 3 else (1,)
        ticks = [d * float(f"1e{e}") for e in range(first, last + 1, every) for d in digits]
    else:
        unit = 10. ** math.floor(math.log10((high - low) / 4))
        unit *= max(m for m in (1, 2, 2.5, 5) if m * unit <= (high - low) / 4)
        ticks = [float(f"{unit * i:.12g}")
                 for i in range(math.floor(low / unit), math.ceil(high / unit) + 1)]
    return [x for x in ticks if low <= x * (1 + 1e-9) and x <= high * (1 + 1e-9)]


def override(trial: PageTrial, path: str) -> Any:
    return trial.overrides.get(path, MISSING)


def varying(trials: Sequence[PageTrial]) -> list[str]:
    """The paths whose values differ between trials, in the order of the trials."""
    paths = dict.fromkeys(path for t in trials for path in t.overrides)
    return [p for p in paths if len({key(override(t, p)) for t in trials}) > 1]


def ranked(trials: Sequence[PageTrial], mode: str) -> list[PageTrial]:
    """Best first; those without a value last."""
    def rank(trial: PageTrial) -> tuple[bool, float, int]:
        value = finite(trial.value)
        return value is None, (-value if mode == "max" else value) if value else 0., trial.number
    return sorted(trials, key=rank)


def finished(trials: Sequence[PageTrial]) -> list[PageTrial]:
    return [t for t in trials if t.state == "done" and finite(t.value) is not None]


@dataclass(frozen=True)
class Configuration:
    """Trials that differ in their seed alone: mean, sample standard deviation and number of the
    values of those that are done; None where there are too few."""

    trials: list[PageTrial]
    mean: float | None
    sd: float | None
    n: int


def configurations(trials: Sequence[PageTrial], mode: str) -> list[Configuration]:
    """Best mean first; [] if no configuration has several seeds."""
    groups: dict[Any, list[PageTrial]] = defaultdict(list)
    for trial in trials:
        if "seed" in trial.overrides:
            groups[key({p: v for p, v in trial.overrides.items() if p != "seed"})].append(trial)
    if all(len(group) < 2 for group in groups.values()):
        return []
    found = []
    for group in groups.values():
        found.append(averaged(group, [t.value for t in finished(group)]))
    return sorted(found, key=lambda c: (c.mean is None, (-c.mean if mode == "max" else c.mean)
                                        if c.mean else 0.))


def averaged(group: list[PageTrial], values: Sequence[float | None]) -> Configuration:
    """The configuration of these trials with the mean of some values of theirs."""
    known = [x for v in values if (x := finite(v)) is not None]
    with np.errstate(all="ignore"):
        return Configuration(
            group, finite(float(np.mean(known))) if known else None,
            finite(float(np.std(known, ddof=1))) if len(known) > 1 else None, len(known))


def importances(trials: Sequence[PageTrial], seed: int = 0) -> dict[str, float]:
    """Each swept leaf's share in what a random forest says of the trials' ranks, largest first.

    The seed of a trial is left out. {} if fewer than 5 trials are done, all values are equal, or no
    leaf matters.

    Args:
      trials: of the sweep.
      seed: of the forest.
    """
    return _forest(trials, seed)[0]


def _forest(trials: Sequence[PageTrial], seed: int) -> tuple[dict[str, float], float]:
    """(importances, R² on the trials that a tree has not seen)."""
    done = finished(trials)
    paths = [p for p in varying(done) if p != "seed"]
    ranks = np.unique(np.array([finite(t.value) for t in done], float), return_inverse=True)[1]
    if len(done) < 5 or not paths or ranks.max() == 0:
        return {}, 0.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    inputs = np.stack([np.unique(axis([override(t, p) for t in done]).at, return_inverse=True)[1]
                       for p in paths], axis=1)
    forest = RandomForestRegressor(TREES, oob_score=True, random_state=seed).fit(inputs, ranks)
    drops: Any = permutation_importance(forest, inputs, ranks, n_repeats=REPEATS,
                                        random_state=seed)
    shares = np.maximum(drops["importances_mean"], 0)
    if shares.sum() == 0:
        return {}, 0.
    shares = shares / shares.sum()
    return {paths[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}, float(
        forest.oob_score_)


# Charts, as plotly.js takes them.


def shade(rank: int, count: int) -> str:
    """The colour of a line: the best stands out, the others pale with their rank."""
    if rank == 0:
        return BEST
    share = (rank - 1) / max(count - 2, 1)
    return "rgb({},{},{})".format(*(round(g + share * (b - g))
                                    for g, b in zip(GOOD, BAD, strict=True)))


class Page:
    """What is known of the sweep, and the sections of its page.

    Args:
      metric: that ranks the trials, None if none does.
      mode: "max" or "min".
      trials: in any order.
    """

    def __init__(self, metric: str | None, mode: str, trials: Sequence[PageTrial]) -> None:
        self.metric, self.mode, self.ranks = metric or "value", mode, metric is not None
        self.trials = ranked(trials, mode)
        self.paths = varying(self.trials)
        self.names = short_names(dict.fromkeys(p for t in self.trials for p in t.overrides))
        self.valued = [t for t in self.trials if finite(t.value) is not None]
        self.best = next(iter([*finished(self.trials), *self.valued]), None)
        self.groups = configurations(self.trials, mode)
        values = [v for t in self.valued if (v := finite(t.value)) is not None]
        self.log = (mode == "min" and bool(values) and min(values) > 0
                    and max(values) / min(values) > 20)
        self.charts = page.Charts()

    def label(self, trial: PageTrial, seed: bool = True, between: str = ", ") -> str:
        """The overrides that differ between trials; those of a single trial all."""
        paths = self.paths or (list(trial.overrides) if len(self.trials) == 1 else [])
        return between.join(f"{self.names[p]} = {clipped(text(override(trial, p)), 80)}"
                            for p in paths if p in trial.overrides and (seed or p != "seed"))

    def hover(self, trial: PageTrial) -> str:
        value = "no value" if finite(trial.value) is None else text(trial.value)
        lines = [f"trial {trial.number}, {trial.state}", f"{self.metric} = {value}",
                 *self.label(trial, between="\n").split("\n")]
        return "<br>".join(chart_text(line, 120) for line in lines)

    def summary(self) -> str:
        counts = Counter(t.state for t in self.trials)
        states = [f"<b>{counts[s]:,}</b> {escaped(s)}"
                  for s in dict.fromkeys([*STATES, *sorted(counts)]) if counts[s]]
        parts = [" · ".join(states) or "No trials yet"]
        if self.best:
            also = "" if self.best.state == "done" else f", {self.best.state}"
            parts.append(f"best is trial {self.best.number}{escaped(also)}: "
                         f"{escaped(self.metric)} = <b>{text(self.best.value)}</b> "
                         f"<code>{escaped(self.label(self.best))}</code>")
            if self.valued[0] is not self.best:
                first = self.valued[0]
                parts.append(f"trial {first.number}, {escaped(first.state)}, "
                             f"has {text(first.value)}")
        elif self.trials:
            parts.append("no trial has a value" if self.ranks else "no metric ranks them: set "
                         "best.metric, or --metric=EVALUATOR/NAME")
        if self.groups and self.groups[0].n > 1:
            c = self.groups[0]
            parts.append(f"best mean over seeds: <b>{mean_and_sd(c)}</b> (n = {c.n}) "
                         f"<code>{escaped(self.label(c.trials[0], seed=False))}</code>")
        return f'<p class="summary">{"; ".join(parts)}</p>'

    def ranking(self) -> str:
        if not self.trials:
            return ""
        paths = self.paths or (list(self.trials[0].overrides) if len(self.trials) == 1 else [])
        arrow = "↑" if self.mode == "max" else "↓"
        head = "".join(f'<th title="{escaped(title)}"><button>{escaped(name)}</button></th>'
                       for name, title in [
            # What counts comes first: the leaves may be too many for the width of a page.
            ("trial", "number"), (f"{self.metric} {arrow}", "best so far"),
            *((clipped(self.names[p], 30), p) for p in paths), ("step", "newest with results"),
            ("state", "state"), ("seconds", "seconds")])
        places = {p: dict(zip(map(id, self.trials), axis(
            [override(t, p) for t in self.trials]).at, strict=True)) for p in paths}
        rows = []
        for t in self.trials:
            value = finite(t.value)
            newest = "\n".join(f"{k}: {text(v)}" for k, v in t.results.items())
            cells = [cell(t.number, f"{t.number}"),
                     cell(value, "-" if t.value is None else text(t.value) if value is None
                          else f"{value:#.4g}".rstrip("."), newest)]
            cells += [cell(places[p][id(t)], clipped(text(override(t, p)), 40),
                           text(override(t, p))) for p in paths]
            cells += [cell(finite(t.step), f"{t.step:,}"),
                      cell(list(STATES).index(t.state) if t.state in STATES else -1, t.state,
                           t.reason, STATES.get(t.state, "")),
                      cell(finite(t.seconds), f"{t.seconds:,.{0 if t.seconds >= 100 else 1}f}")]
            rows.append(f"<tr{' class=best' if t is self.best else ''}>{''.join(cells)}</tr>")
        same = [f"{self.names[p]} = {clipped(text(override(self.trials[0], p)), 60)}"
                for p in self.names if p not in paths]
        note = f"<p class=note>In all trials: {escaped(', '.join(same))}.</p>" if same else ""
        return section("Trials", f"{table(head, rows)}{note}", f"{len(self.trials):,}, best first")

    def seeds(self) -> str:
        """The table of configurations, with what they reach on average over their seeds."""
        if not self.groups:
            return ""
        paths = [p for p in self.paths if p != "seed"]
        head = [f"{self.metric}: mean ± sd", "n", *(clipped(self.names[p], 30) for p in paths),
                "trials"]
        rows = []
        for c in self.groups:
            cells = [cell(None, mean_and_sd(c)), cell(None, f"{c.n}"),
                     *(cell(None, clipped(text(override(c.trials[0], p)), 40)) for p in paths),
                     cell(None, clipped(", ".join(str(t.number) for t in c.trials), 60))]
            rows.append(f"<tr{' class=best' if c is self.groups[0] and c.n else ''}>"
                        f"{''.join(cells)}</tr>")
        return section("Over seeds", table("".join(f"<th>{escaped(h)}</th>" for h in head), rows)
                       + "<p class=note>Mean and sample standard deviation over the n trials "
                         "that are done.</p>")

    def measures(self) -> str:
        """The table of what the evaluators measured besides, on average over the seeds."""
        names = [name for name in dict.fromkeys(n for t in self.trials for n in t.results)
                 if name != self.metric and "/" in name and not name.startswith("train/")]
        if not self.groups or not names:
            return ""
        paths = [p for p in self.paths if p != "seed"]
        head = [*(clipped(self.names[p], 30) for p in paths), *names]
        rows = [
            "<tr>" + "".join(cell(None, clipped(text(override(c.trials[0], p)), 40))
                             for p in paths)
            + "".join(cell(None, mean_and_sd(averaged(
                c.trials, [t.results.get(name) for t in c.trials if t.state == "done"])))
                for name in names) + "</tr>" for c in self.groups]
        return section("What else was measured",
                       table("".join(f"<th>{escaped(h)}</th>" for h in head), rows),
                       "newest values, mean ± sd over seeds")

    def parallel(self) -> str:
        """The parallel coordinates of leaves and metric."""
        if not self.valued or not self.paths:
            return ""
        shown = self.valued[::-1]  # the best are drawn last
        axes = [(self.names[p], axis([override(t, p) for t in shown])) for p in self.paths]
        axes.append((self.metric, axis([t.value for t in shown], self.log)))
        at = axes[-1][1].at
        worst, best = (min(at), max(at)) if self.mode == "max" else (max(at), min(at))
        share = max(10., 100 - 10_000 / len(at))
        ranks = float(np.percentile(at, share if self.mode == "max" else 100 - share))
        low, high = sorted((worst if len(at) < 20 else ranks, best))
        line = {"color": at, "cmin": low, "cmax": high if high > low else low + 1,
                "reversescale": self.mode != "max", "colorscale": [
                    [0, shade(2, 3)], [0.99, shade(1, 3)], [0.995, BEST], [1, BEST]]}
        data = {"type": "parcoords", "line": line, "labelangle": -15 if len(axes) > 7 else 0,
                "labelfont": {"size": 13}, "tickfont": {"size": 11, "color": "#212529"},
                "dimensions": [{"label": chart_text(name, 20), "values": a.at, "range": a.range,
                                "tickvals": [a.range[0], *(at for at, _ in a.ticks), a.range[1]],
                                "ticktext": ["", *(clipped(name, 16) for _, name in a.ticks), ""]}
                               for name, a in axes]}
        left = len(self.trials) - len(shown)
        caption = ("The best are orange; the darker another line, the better. Drag along an axis "
                   "to pick trials, and its name to move it."
                   f"{f' Left out, without a value: {left:,}.' if left else ''}")
        return section("Parallel coordinates", self.charts.add(
            [data], layout(margin={"l": 90, "r": 90, "t": 75 if len(axes) > 7 else 45, "b": 20}),
            400, caption, 110 * len(axes)))

    def leaves(self) -> str:
        """The metric against each leaf."""
        if not self.valued or not self.paths:
            return ""
        shown = self.valued[::-1]
        place = {id(t): i for i, t in enumerate(self.trials)}
        values = axis([t.value for t in shown], self.log)
        found = []
        for path in self.paths:
            a = axis([override(t, path) for t in shown])
            places = sorted(set(a.at))
            apart = min((y - x for x, y in pairwise(places)), default=0.)
            apart = min(0.2 * apart, 0.1 * (places[-1] - places[0]))
            many = len(shown) > 3 * len(places)
            data = {"type": "scatter", "mode": "markers", "hoverinfo": "text",
                    "x": [x + (apart * ((i * 0.618) % 1 - 0.5) if many else 0.)
                          for i, x in enumerate(a.at)],
                    "y": values.at, "customdata": [place[id(t)] for t in shown],
                    "cliponaxis": False, "marker": {"line": {"width": 0},
                               "size": [11 if t is self.best else 8 if len(shown) < 200 else 5
                                        for t in shown], "opacity": 0.8,
                               "color": [BEST if t is self.best else shade(1, 3) for t in shown],
                               "symbol": ["circle" if t.state == "done" else "circle-open"
                                          for t in shown]}}
            names = [clipped(name, 14) for _, name in a.ticks]
            tight = any((at - before) / (a.range[1] - a.range[0]) < 0.012 * (len(x) + len(y)) + 0.02
                        for (before, x), (at, y) in pairwise(
                            (at, name) for (at, _), name in zip(a.ticks, names, strict=True)))
            found.append(self.charts.add([data], layout(
                xaxis={"title": {"text": chart_text(self.names[path], 40)}, "range": a.range,
                       "tickvals": [at for at, _ in a.ticks], "ticktext": [*map(chart_text, names)],
                       "tickangle": -35 if tight else 0},
                yaxis={"title": {"text": chart_text(self.metric, 30)}, "range": values.range,
                       "tickvals": [at for at, _ in values.ticks],
                       "ticktext": [chart_text(name) for _, name in values.ticks]}), 290))
        return section(f"{self.metric} by leaf", f"<div class=grid>{''.join(found)}</div>"
                       "<p class=note>The best trial is orange; open circles are trials that are "
                       "not done. Many points of one value are spread a little.</p>")

    def curves(self) -> str:
        """The learning curves, of each metric."""
        drawn = [t for t in self.trials if any(t.curves.values())]
        names = sorted({name for t in drawn for name, curve in t.curves.items() if curve})
        if not names:
            return ""
        names.sort(key=lambda name: name != self.metric)
        left, drawn = len(drawn) - DRAWN, drawn[:DRAWN]
        kept = {id(t) for t in drawn}
        groups = [c for c in self.groups if any(id(t) in kept for t in c.trials)][:DRAWN]
        points = min(POINTS, max(20, BUDGET // (len(names) * (len(drawn) + 3 * len(groups)))))
        lines: list[dict[str, Any]] = []
        for rank, c in reversed(list(enumerate(groups))):
            name = chart_text(self.label(c.trials[0], seed=False) or "all", 40)
            style = {"legendgroup": f"c{rank}", "name": name, "meta": [
                f"{name}, {len(c.trials)} trials<br>{chart_text(mean_and_sd(c))}"]}
            colour = shade(rank, len(groups))
            lines += [{**style, "mode": "lines", "line": {"width": 0}, "fill": "toself",
                       "fillcolor": colour, "opacity": 0.25, "hoverinfo": "skip",
                       "showlegend": False, "visible": True},
                      {**style, **LINE, "line": {"color": colour, "width": 3 if rank == 0 else 1.5},
                       "visible": True, "legendrank": rank}]
        for rank, t in reversed(list(enumerate(drawn))):
            name = f"{t.number}: {self.label(t)}" if self.label(t) else f"trial {t.number}"
            lines.append({**LINE, "name": chart_text(name, 40), "meta": [self.hover(t)],
                          "line": {"color": shade(rank, len(drawn)),
                                   "width": 3 if rank == 0 else 1.2},
                          "visible": not groups, "legendrank": rank})
        buttons = []
        for name in names:
            single = [thinned(t.curves.get(name, ()), points) for t in reversed(drawn)]
            log = falls([ys for _, ys in single])
            xy = [xy for c in reversed(groups) for xy in band(c, name, points, log)] + single
            buttons.append({"method": "update", "label": chart_text(name), "args": [
                {"x": [x for x, _ in xy], "y": [y for _, y in xy],
                 "mode": ["lines" if len(x) != 1 else "markers" for x, _ in xy]},
                {"yaxis.title.text": chart_text(name), "yaxis.type": "log" if log else "linear",
                 "yaxis.dtick": "D2" if log else None, "yaxis.tickformat": "~g" if log else "",
                 "xaxis.autorange": True, "yaxis.autorange": True}]})
        menus = [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.03, "yanchor": "bottom",
                  "bgcolor": "white"}]
        if groups:
            menus.append({"type": "buttons", "direction": "right", "x": 1, "xanchor": "right",
                          "y": 1.03, "yanchor": "bottom", "bgcolor": "white", "buttons": [
                {"method": "restyle", "label": label, "args": [{"visible": [
                    (i < 2 * len(groups)) == mean for i in range(len(lines))]}]}
                for label, mean in (("mean ± sd over seeds", True), ("each trial", False))]})
        for i, line in enumerate(lines):
            line.update(type="scatter", **{what: each[i] for what, each in
                                           buttons[0]["args"][0].items()})
        caption = "The best is orange, the others pale with their rank."
        if groups:
            caption += " Bands are one sample standard deviation to each side of the mean."
        if left > 0:
            caption += f" Of {left + len(drawn):,} trials with curves the best {DRAWN} are drawn."
        if any(len(curve) > points for t in drawn for curve in t.curves.values()):
            caption += f" Of a longer curve {points} points are shown, evenly spaced."
        first = buttons[0]["args"][1]
        return section("Learning curves", self.charts.add(lines, layout(
            xaxis={"title": {"text": "step"}, "tickformat": ","}, updatemenus=menus,
            yaxis={"title": {"text": first["yaxis.title.text"]},
                   **{k: first[f"yaxis.{k}"] for k in ("type", "dtick", "tickformat")}},
            showlegend=1 < (len(groups) or len(drawn)) <= 20,
            legend={"tracegroupgap": 0, "font": {"size": 11}},
            margin={"l": 55, "r": 15, "t": 80, "b": 45}), 500, caption))

    def importance(self) -> str:
        """The bars of the leaves' importances, and how they come about."""
        shares, explained = _forest(self.trials, 0)
        done = len(finished(self.trials))
        if not shares:
            return "" if not self.trials else section(
                "Importance of the leaves", "<p class=note>Not computed. It takes five trials that "
                f"are done (now: {done:,}), different values, and a leaf besides the seed that "
                "matters.</p>")
        caption = (f"Permutation importance in a random forest ({TREES} trees, scikit-learn) that "
                   f"was fitted to the ranks of the {done:,} done trials by {self.metric}: how "
                   f"much of R² is lost when a leaf's values are shuffled, mean of {REPEATS} times,"
                   " negative values taken as 0, as shares of their sum. The seed is left out. On "
                   "trials that a tree has not seen the forest's R² is "
                   f"{explained:.2f}{': too little to rely on' if explained < 0.3 else ''}.")
        names = [chart_text(self.names[p], 40) for p in shares][::-1]
        values = list(shares.values())[::-1]
        data = {"type": "bar", "orientation": "h", "x": values, "y": list(range(len(names))),
                "marker": {"color": shade(1, 3)}, "text": [f"{v:.0%}" for v in values],
                "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}
        return section("Importance of the leaves", self.charts.add([data], layout(
            xaxis={"title": {"text": "share"}, "tickformat": ".0%",
                   "range": [0, max(values) * 1.08]},
            yaxis={"tickvals": list(range(len(names))), "ticktext": names, "ticklen": 4},
            bargap=0.35), 80 + 34 * len(names), caption))

    def failures(self) -> str:
        """The trials that failed or were pruned, and why."""
        found = sorted((t for t in self.trials if t.state in ("failed", "pruned")),
                       key=lambda t: (t.state, t.number))
        rows = [f"<tr>{cell(None, f'{t.number}')}"
                f"{cell(None, t.state, colour=STATES[t.state])}{cell(None, f'{t.step:,}')}"
                f"<td>{escaped(self.label(t))}</td><td class=reason>"
                f"{escaped(clipped(t.reason, 300)) or '-'}</td></tr>" for t in found]
        return section("Failed and pruned", table(
            "<th>trial<th>state<th>step<th>overrides<th>reason", rows)) if found else ""


LINE = {"mode": "lines", "connectgaps": False,
        "hovertemplate": "%{meta[0]}<br>step %{x:,}: %{y:.5g}<extra></extra>"}


def mean_and_sd(found: Configuration) -> str:
    """Mean ± standard deviation, to two digits of the latter."""
    if found.mean is None:
        return "-"
    if not found.sd:
        return text(found.mean) + (" ± 0" if found.sd == 0 else "")
    digits = 1 - math.floor(math.log10(found.sd))
    if not 0 <= digits <= 6:
        return f"{text(found.mean)} ± {found.sd:.2g}"
    return f"{found.mean:.{digits}f} ± {found.sd:.{digits}f}"


def thinned(curve: Sequence[tuple[int, float | None]], points: int) -> tuple[list[Any], list[Any]]:
    """(steps, values) of so many points, the first and the newest among them."""
    keep = sorted({round(i) for i in np.linspace(0, len(curve) - 1, min(points, len(curve)))})
    return [curve[i][0] for i in keep], [finite(curve[i][1]) for i in keep]


def band(found: Configuration, name: str, points: int, log: bool) -> list[
        tuple[list[Any], list[Any]]]:
    """The outline of mean ± sd over a configuration's trials, and the line of the mean. Between the
    steps of a trial its curve is taken as straight."""
    curves = []
    for t in found.trials:
        known = [(s, x) for s, v in t.curves.get(name, ()) if (x := finite(v)) is not None]
        if known:
            curves.append(np.array(sorted(known), float).T)
    if not curves:
        return [([], []), ([], [])]
    steps = np.unique(np.concatenate([x for x, _ in curves]))
    steps = steps[sorted({round(i) for i in np.linspace(0, len(steps) - 1,
                                                        min(points, len(steps)))})]
    values = np.ma.masked_invalid([np.interp(steps, x, y, np.nan, np.nan) for x, y in curves])
    with np.errstate(all="ignore"):
        mean = values.mean(0).filled(np.nan)
        sd = values.std(0, ddof=1).filled(np.nan) if len(curves) > 1 else np.full_like(mean, np.nan)
    low, high = mean - sd, mean + sd
    if log:
        low = np.maximum(low, values.min(0).filled(np.nan))
    inside = np.isfinite(low) & np.isfinite(high)
    x = steps[inside]
    return [([*x, *x[::-1]], [*high[inside], *low[inside][::-1]]), ([*steps], [*mean])]


def write(path: Path, *, title: str, metric: str | None, mode: str, trials: Sequence[PageTrial],
          notes: Sequence[str] = ()) -> None:
    """Writes the page, in one piece.

    Args:
      path: of the file.
      title: of the page.
      metric: that ranks the trials, None if none does.
      mode: "max" if more of it is better, "min" if less.
      trials: in any order.
      notes: lines to stand below the summary.
    """
    made = Page(metric, mode, trials)
    said = "".join(f"<p class=note>{escaped(note)}</p>" for note in notes)
    body = "\n".join([f"<h1>{escaped(title)}</h1>", made.summary(), said, made.ranking(),
                      made.seeds(), made.measures(), made.parallel(), made.leaves(), made.curves(),
                      made.importance(), made.failures()])
    page.save(path, page.document(title, body, made.charts, script=SCRIPT,
                                  data={"trials": [made.hover(t) for t in made.trials]}))


SCRIPT = r"""
const graphics = !!document.createElement("canvas").getContext("webgl");
const plain = s => s.replace(/&/g, "&amp;").replace(/</g, "&lt;");
function lines({dimensions: axes}) {  // parallel coordinates where there is no WebGL
  const last = axes[0].values.length - 1;
  const place = (a, v) => (v - a.range[0]) / (a.range[1] - a.range[0]);
  const part = (from, to, color) => {
    const x = [], y = [];
    for (let i = from; i < to; i++) {
      axes.forEach((a, k) => { x.push(k); y.push(place(a, a.values[i])); });
      x.push(null); y.push(null);
    }
    return {x, y, mode: "lines", line: {color, width: 1}, hoverinfo: "skip"};
  };
  const ticks = {x: [], y: [], text: [], mode: "text", textposition: "middle left",
                 hoverinfo: "skip"};
  axes.forEach((a, k) => a.tickvals.forEach((v, i) => {
    ticks.x.push(k); ticks.y.push(place(a, v)); ticks.text.push(plain(a.ticktext[i]));
  }));
  return [part(0, last, "rgba(28,95,168,0.3)"), part(last, last + 1, "BEST"), ticks];
}
for (const [name, chart] of Object.entries(page.charts)) {
  for (const trace of chart.data)
    if (trace.customdata) trace.text = trace.customdata.map(i => page.trials[i]);
  if (chart.data[0].type === "parcoords" && !graphics) {
    const axes = chart.data[0].dimensions;
    chart.data = lines(chart.data[0]);
    chart.layout.xaxis = {side: "top", tickvals: axes.map((_, k) => k),
                          ticktext: axes.map(a => a.label)};
    chart.layout.yaxis = {visible: false};
  }
}
""".replace("BEST", BEST)
