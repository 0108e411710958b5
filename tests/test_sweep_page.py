"""The page of a sweep: its numbers, that no text breaks out of it, and that a browser draws it."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl import sweep_page
from jaxdl.sweep_page import PageTrial, axis, configurations, importances, short_names, write
from tests.browser import BROWSER, browse

EVIL = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"



def trial(number: int, value: float | None = None, state: str = "done", reason: str = "",
          steps: int = 20, metrics: tuple[str, ...] = ("test/accuracy", "train/loss"),
          **overrides: Any) -> PageTrial:
    """Paths have "__" for a dot."""
    curves = {m: [(50 * i, (value or 0.) * (1 - 0.8 ** i)) for i in range(1, steps + 1)]
              for m in metrics} if value is not None else {}
    leaves = {path.replace("__", "."): leaf for path, leaf in overrides.items()}
    return PageTrial(number=number, overrides=leaves,
                     state=state, value=value, step=50 * steps, reason=reason, seconds=1.5 * number,
                     results={m: c[-1][1] for m, c in curves.items()}, curves=curves)


def seeded() -> list[PageTrial]:
    """16 rates, 4 seeds."""
    chance = np.random.default_rng(0)
    rates = 10 ** np.linspace(-4, -0.25, 16)
    return [trial(4 * i + seed, float(0.95 - 0.08 * (math.log10(rate) + 2.2) ** 2
                                      + chance.normal(0, 0.008)), optimizer__rate=float(rate),
                  seed=seed) for i, rate in enumerate(rates) for seed in range(4)]


def sampled() -> list[PageTrial]:
    """30 trials of 5 leaves, among them failed ones."""
    chance, trials = np.random.default_rng(0), []
    for i in range(30):
        leaves = {"optimizer__rate": float(10 ** chance.uniform(-4, 0)),
                  "optimizer__decay": [0., 1e-4, 1e-3, 1e-2][chance.integers(4)],
                  "model__width": [64, 128, 256, 512][chance.integers(4)],
                  "model__dropout": [None, 0.1, 0.3, 0.5][chance.integers(4)],
                  "model__activation": ["relu", "gelu", "silu"][chance.integers(3)]}
        value = 0.9 - 0.06 * (math.log10(leaves["optimizer__rate"]) + 2) ** 2
        trials.append(trial(i, None, "failed", "the loss is nan", **leaves) if i in (3, 9, 20) else
                      trial(i, value, "pruned" if i == 5 else "done", **leaves))
    return trials


def odd() -> list[PageTrial]:
    """What an override may be, and more."""
    values = [10 ** 5000, -10 ** 5000, math.inf, -math.inf, math.nan, 2 ** 63, 1e308, -1e308,
              5e-324, 0, -0., True, False, None, "", EVIL, "\ud800 ☃ 日本", "%{x} $y$", "a\nb",
              "x" * 999, "</script>", {"kind": EVIL, "sizes": [1, None, {"x": math.inf}]}, [], {}]
    trials = [trial(i, 0.1 * (i % 7), metrics=("test/accuracy", EVIL),
                    **{f"a__{EVIL}": v, "b__x": v if i % 2 else i, "c__x": 0.1 * i})
              for i, v in enumerate(values)]
    return [*trials, trial(90), trial(91, math.nan, b__x=1), trial(92, math.inf, EVIL, EVIL),
            trial(93, None, "failed", EVIL, **{EVIL: 1}), trial(94, -1e308, seed=10 ** 400)]


def page(folder: Path, trials: list[PageTrial], mode: str = "max",
         metric: str | None = "test/accuracy", **options: Any) -> Path:
    path = folder / "sweep page.html"
    write(path, title="A sweep", metric=metric, mode=mode, trials=trials, **options)
    return path


def own(path: Path) -> str:
    """The page without plotly.js."""
    return re.sub(r'(?s)<script type="text/plain" id="plotly">.*?</script>', "", path.read_text())


def charts(path: Path) -> dict[str, Any]:
    found = re.search(r"const page = (\{.*\});$", path.read_text(), flags=re.MULTILINE)
    return json.loads(found[1])["charts"] if found else {}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_curve_of_one_point_is_a_mark(tmp_path: Path, steps: int) -> None:
    trials = [trial(i, 0.1 * i + 0.1, steps=steps, optimizer__rate=0.1 * (i // 2), seed=i % 2)
              for i in range(4)]
    drawn = [line for chart in charts(page(tmp_path, trials)).values() for line in chart["data"]
             if line.get("type") == "scatter" and "legendrank" in line]
    assert len(drawn) == 6 and {len(line["x"]) for line in drawn} == {steps}
    assert {line["mode"] for line in drawn} == {"markers" if steps == 1 else "lines"}


def test_the_leaf_that_matters_is_the_important_one() -> None:
    chance = np.random.default_rng(0)
    trials = [trial(i, 1e3 ** -abs(math.log10(rate) + 2), model__rate=rate, seed=i,
                    other=float(chance.random()), kind=["a", None, True][i % 3])
              for i, rate in enumerate(10 ** chance.uniform(-4, 0, 40))]
    found = importances([*trials, trial(40, 9., "failed", model__rate=1., other=9.)])
    assert next(iter(found)) == "model.rate" and found["model.rate"] > 0.8
    assert found.keys() == {"model.rate", "other", "kind"}
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) >= 0
    assert found == importances(trials) != importances(trials, seed=1)


def test_negative_importances_count_as_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.inspection.permutation_importance",
                        lambda *_, **__: {"importances_mean": np.array([-0.5, 2., 6.])})
    trials = [trial(i, i, a=i, b=-i, c=i * i) for i in range(5)]
    assert importances(trials) == {"c": 0.75, "b": 0.25, "a": 0}


def test_no_importances_without_evidence() -> None:
    assert importances([]) == {}
    assert importances([trial(i, i, rate=i) for i in range(4)]) == {}
    assert importances([trial(i, 0.5, rate=i) for i in range(9)]) == {}
    assert importances([trial(i, i, seed=i) for i in range(9)]) == {}
    assert importances([trial(i, i, "running", rate=i) for i in range(9)]) == {}
    assert importances([trial(i, i if i < 4 else math.nan, rate=i) for i in range(9)]) == {}
    assert list(importances([trial(i, i, rate=i) for i in range(5)])) == ["rate"]


def test_short_names_are_the_shortest_that_differ() -> None:
    assert short_names(["model.a.width", "model.b.width", "optimizer.rate", "seed"]) == {
        "model.a.width": "a.width", "model.b.width": "b.width", "optimizer.rate": "rate",
        "seed": "seed"}
    assert short_names(["rate", "optimizer.rate"]) == {"rate": "rate",
                                                       "optimizer.rate": "optimizer.rate"}
    assert short_names(["narrate", "x.rate"])["x.rate"] == "rate"


def test_mean_and_sd_are_numpys(tmp_path: Path) -> None:
    trials = seeded()
    running = trial(90, 0.1, "running", optimizer__rate=1e-4, seed=9)
    found = configurations([*trials, running], "max")
    assert len(found) == 16
    for c in found:
        rate = c.trials[0].overrides["optimizer.rate"]
        values = [t.value for t in trials if t.overrides["optimizer.rate"] == rate]
        assert (c.n, c.mean) == (4, pytest.approx(np.mean(values, dtype=float)))
        assert c.sd == pytest.approx(np.std(values, ddof=1, dtype=float))
    assert [c.mean for c in found] == sorted((c.mean for c in found), reverse=True)
    shown = own(page(tmp_path, trials))
    assert sweep_page.mean_and_sd(found[0]) in shown and "What else was measured" not in shown
    others = [trial(i, x, metrics=("test/accuracy", "test/gap", "train/loss"), seed=i)
              for i, x in enumerate((0.5, 0.6))]
    at = (1 - 0.8 ** 20) * np.array([0.5, 0.6])  # where their curves end
    shown = own(page(tmp_path, others)).partition("What else was measured")[2].partition("</tab")[0]
    assert "test/gap" in shown and "train/loss" not in shown and "test/accuracy" not in shown
    assert f"{at.mean():.3f} ± {at.std(ddof=1):.3f}" in shown
    assert configurations([trial(i, i, rate=i, seed=0) for i in range(9)], "max") == []
    assert configurations([trial(i, i, rate=0) for i in range(9)], "max") == []


def test_bands_are_mean_and_sd_at_each_step() -> None:
    found = configurations([trial(i, v, seed=i) for i, v in enumerate([0.5, 0.6, 0.9])], "max")[0]
    (x, outline), (steps, mean) = sweep_page.band(found, "test/accuracy", 200, False)
    values = np.array([[v for _, v in t.curves["test/accuracy"]] for t in found.trials], float)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(outline[:20], values.mean(0) + values.std(0, ddof=1))
    np.testing.assert_allclose(outline[:19:-1], values.mean(0) - values.std(0, ddof=1))
    assert x == [*steps, *steps[::-1]]


@pytest.mark.parametrize(("values", "places"), [
    ([1e-4, 1e-3, 1e-1], [-4, -3, -1]),
    ([0.1, 0.2, 1.9], [0.1, 0.2, 1.9]),
    ([16, 64, 1024], [math.log10(16), math.log10(64), math.log10(1024)]),
    ([*range(1, 65)], [*range(1, 65)]),
    ([i / 100 for i in range(1, 65)], [i / 100 for i in range(1, 65)]),
    ([-1., 1e-4, 1e3], [-1, 1e-4, 1e3]),
    ([0., 1e-4, 1e-2], [-4.4, -4, -2]),
    ([None, 1., 2.], [0.8, 1, 2]),
    ([1., 2., math.inf], [1, 2, 2.2]),
    (["b", "a", "b"], [1, 0, 1]),
    ([True, 1, None], [1, 2, 0]),
])
def test_places_on_an_axis(values: list[Any], places: list[float]) -> None:
    found = axis(values)
    assert found.at == pytest.approx(places)
    assert {round(at, 9) for at, _ in found.ticks} <= {
        *(round(p, 9) for p in places)} or len(set(values)) > 8


def test_ticks_are_in_the_units_of_the_leaf() -> None:
    assert axis([1e-5, 3e-4, 1e-2]).ticks == [(-5, "1e-5"), (pytest.approx(-3.5228787), "0.0003"),
                                              (-2, "0.01")]
    assert [name for _, name in axis([*np.linspace(3, 97, 50).tolist()]).ticks] == [
        "20", "40", "60", "80"]
    assert [name for _, name in axis([*np.geomspace(2e-5, 0.3, 50).tolist()]).ticks] == [
        "0.0001", "0.001", "0.01", "0.1"]


def test_the_best_comes_first_and_is_named(tmp_path: Path) -> None:
    trials = [trial(0, 0.5, rate=0.1, kind="a"), trial(1, None, "pending", rate=0.3, kind="a"),
              trial(2, 0.25, rate=0.2, kind="a"), trial(3, math.nan, "failed", rate=0.4, kind="a")]
    for mode, best, order in (("max", "trial 0", "0213"), ("min", "trial 2", "2013")):
        text = own(page(tmp_path, trials, mode))
        assert f"best is {best}: test/accuracy" in text
        assert "".join(re.findall(r"<tr[^>]*><td data-v=\"(\d)\"", text)) == order
    assert "<b>2</b> done · <b>1</b> failed · <b>1</b> pending" in text
    assert "<code>rate = 0.2</code>" in text, "what differs, and no more"
    assert "In all trials: kind = a." in text


def test_losses_have_a_logarithmic_axis() -> None:
    assert sweep_page.falls([[2.3, 0.5, 0.01], [2.3, None, 0.1]])
    assert not sweep_page.falls([[0.01, 0.5, 0.9], [0.01, 0.95, None]])
    assert not sweep_page.falls([[2.3, 0., 0.01]]) and not sweep_page.falls([[], [None]])


def test_the_curves_of_each_metric_can_be_chosen(tmp_path: Path) -> None:
    trials = [trial(i, 0.1 * i, metrics=("a/x", "test/accuracy", "train/loss"), rate=i)
              for i in range(1, 5)]
    chart = next(c for c in charts(page(tmp_path, trials)).values() if "updatemenus" in c["layout"])
    buttons = chart["layout"]["updatemenus"][0]["buttons"]
    assert [b["label"] for b in buttons] == ["test/accuracy", "a/x", "train/loss"]
    assert chart["data"][-1]["line"] == {"color": sweep_page.BEST, "width": 3}
    assert chart["data"][-1]["name"].startswith("4:"), "the best is drawn last"
    newest = trials[-1].results["test/accuracy"]
    assert chart["data"][-1]["y"][-1] == pytest.approx(newest, rel=1e-5)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("metric", ["test/accuracy", None])
def test_odd_values_stay_inside(tmp_path: Path, mode: str, metric: str | None) -> None:
    path = page(tmp_path, odd(), mode, metric, notes=[EVIL])
    text = own(path)
    assert "<img" not in text and "<script>window" not in text
    assert text.count("<script>") == text.count("</script>") == 2
    assert charts(path)
    assert not list(tmp_path.glob("*.tmp"))


def test_any_few_of_the_odd_values_make_a_page(tmp_path: Path) -> None:
    """An axis of two values may be of any two kinds."""
    values = [t.overrides["b.x"] for t in odd()[:24]] + [
        t.overrides[f"a.{EVIL}"] for t in odd()[:24]]
    for first in values:
        for second in values:
            found = axis([first, second, 0.5])
            assert all(math.isfinite(at) for at in [*found.at, *found.range])
            assert found.ticks


def test_nothing_is_loaded(tmp_path: Path) -> None:
    text = own(page(tmp_path, sampled()))
    assert "http:" not in text and "https:" not in text and "src=" not in text
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']


@pytest.mark.parametrize("trials", [[], [trial(0, 0.5, rate=0.1)], [trial(0)],
                                    [trial(i, None, "failed", "no", rate=i) for i in range(3)],
                                    [trial(i, 0.5, "running", rate=i) for i in range(3)]])
def test_small_sweeps(tmp_path: Path, trials: list[PageTrial]) -> None:
    text = own(page(tmp_path, trials))
    assert "<h1>A sweep</h1>" in text and (trials or "No trials" in text)


def test_a_large_sweep_makes_a_moderate_file(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_page, "_forest", lambda trials, seed: ({}, 0.))
    chance = np.random.default_rng(0)
    metrics = ("test/accuracy", *(f"train/{i}" for i in range(19)))
    trials = [trial(i, float(chance.random()), steps=0, metrics=(),
                    **{f"model__leaf{j}": float(chance.random()) for j in range(10)})
              for i in range(1000)]
    curve = [(i, 1 / i) for i in range(1, 1001)]
    trials = [PageTrial(**{**vars(t), "curves": dict.fromkeys(metrics, curve)}) for t in trials]
    path = page(tmp_path, trials)
    assert path.stat().st_size < 11e6
    lines = next(c for c in charts(path).values() if "updatemenus" in c["layout"])["data"]
    assert len(lines) == 200
    assert all(len(line["x"]) <= 200 and line["x"][-1] == 1000 for line in lines)
    assert "Of 1,000 trials with curves the best 200 are drawn" in own(path)


def test_neither_jax_nor_plotly_is_imported() -> None:
    code = ("import sys, jaxdl.sweep_page\n"
            "sys.exit(bool({'jax', 'plotly', 'sklearn'} & {*sys.modules}))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(BROWSER is None, reason="apt-get install chromium")
@pytest.mark.parametrize(("sweep", "number", "options"), [
    (seeded, 5, ()), (sampled, 8, ()), (sampled, 8, ("--disable-3d-apis",)), (odd, 8, ()),
    (lambda: [trial(0, 0.5, rate=0.1)], 1, ()), (list, 0, ())],
    ids=["seeds", "sampled", "without-webgl", "odd", "one", "none"])
def test_a_browser_draws_the_page(tmp_path: Path, sweep: Callable[[], list[PageTrial]], number: int,
                                  options: tuple[str, ...]) -> None:
    trials = sweep()
    seen, console, asked = browse(page(tmp_path, trials), tmp_path, *options)
    assert console == [] and asked == [] and seen["broken"] is None
    assert len(seen["found"]) == number
    for chart in seen["found"]:
        assert chart["drawn"] and chart["marks"] and chart["wide"] and not chart["refused"]
        assert all(width > 100 and height > 50 for width, height in chart["drawn"])
    assert not [b for b in seen["buttons"] if b.startswith("Share")], "no upload"
    if len(trials) > 1:
        assert seen["rows"][1:] == [str(min(t.number for t in trials)),
                                    str(max(t.number for t in trials))]
