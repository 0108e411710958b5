"""The arithmetic of the benchmarks; what they measure is not tested."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def module(name: str, monkeypatch: pytest.MonkeyPatch):
    """A file of benchmarks/, under a name that hides no other module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_ratios_are_taken_within_a_round_and_against_the_fastest_peer(monkeypatch):
    train = module("train", monkeypatch)
    ours, slow, fast = (train.Result(name, {"first": 1.}) for name in
                        ("jaxdl", "torch", "torch tuned"))
    ours.seconds, slow.seconds, fast.seconds = [1., 4., 2.], [3., 9., 6.], [2., 8., 4.]
    results = train.related([ours, slow, fast], ["torch", "torch tuned"])
    assert results[0].ratios == [2., 2., 2.] and results[1].behind == [3., 2.25, 3.]
    row = next(iter(train.rows("mlp", results)))
    assert row[1:4] == ("jaxdl", "0.5 steps/s", "2e+03") and row[5] == "2.00"
    assert row[8] == "2.10 (2.30)"


def test_the_interval_holds_the_median(monkeypatch):
    contest = module("contest", monkeypatch)
    median, low, high = contest.interval([1., 2., 3., 4., 100.])
    assert median == 3 and 1 <= low < 3 < high <= 100
    assert contest.interval([2.] * 5) == (2, 2, 2)


def test_each_group_has_what_it_is_compared_with(monkeypatch):
    contest = module("contest", monkeypatch)
    found = contest.groups(["a", "b", "c"], 4, ["jaxdl", "torch"])
    assert found == [["jaxdl", "torch", "a", "b"], ["jaxdl", "torch", "c"]]


def test_phases_are_read_from_what_a_run_prints(monkeypatch):
    start = module("start", monkeypatch)
    lines = [(1., "note"), (2., "workloads in /tmp/run"), (5., "compiled in 2.9 s; state 1 MB"),
             (6.5, start.DONE)]
    assert start.phases(lines) == "imports, arguments, record 2.00, compile 3.00, step 1.50"
    assert start.phases([(1., "error: no")]) == "1 lines"
