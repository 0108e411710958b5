"""The arithmetic of the benchmarks; what they measure is not tested."""

import importlib.util
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxdl.models.mlp import MLP
from jaxdl.tasks.classification import Classification

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
    assert row[1:4] == ("jaxdl", "0.5 steps/s", "2,000") and row[5] == "2.00"
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


@pytest.mark.parametrize(("groups", "size"), [
    ("replica_groups={{0,1},{2,3}}", 2), ("replica_groups=[2,4]<=[8]", 4),
    ("replica_groups=mesh['data'=4,'tensor'=2] {'data'}", 4), ("replica_groups={}", 8)])
def test_collectives_are_counted_with_what_a_ring_sends(monkeypatch, groups, size):
    scaling = module("scaling", monkeypatch)
    text = (
        "HloModule jit_step, num_partitions=8\n\nENTRY %main (x: f32[100]) -> f32[] {\n"
        "  %x = f32[100]{0} parameter(0)\n  %y = f64[5,5]{1,0} parameter(1)\n"
        f"  %a = (f32[100]{{0}}, f64[5,5]{{1,0}}) all-reduce(%x, %y), {groups}, to_apply=%add\n"
        f"  %b = f32[{100 * size}]{{0}} all-gather(%x), {groups}, dimensions={{0}}\n}}\n")
    found = scaling.collectives(text, scaling.profile.instructions(text))
    assert found == {"all-reduce": (1, 600, 2 * (size - 1) / size * 600),
                     "all-gather": (1, 400 * size, (size - 1) / size * 400 * size)}


def test_the_reference_of_pmap_normalises_each_part_by_itself(monkeypatch):
    scaling = module("scaling", monkeypatch)
    task = scaling.InParts(model=MLP(widths=(4,), classes=3, batch_norm=True))
    plain = Classification(model=task.model)
    random = np.random.default_rng(0)
    batch = {"image": random.normal(size=(32, 2, 2, 1)).astype(np.float32),
             "label": random.integers(3, size=32), "mask": np.arange(32) % 5 > 0}
    key, variables = jax.random.key(0), {}
    task.loss(variables, batch, key, train=False)
    mean, aux = task.loss(variables, batch, key, train=True)
    parts = [plain.loss(variables, jax.tree.map(lambda x, i=i: x[4 * i:4 * i + 4], batch), key,
                        train=True) for i in range(8)]
    total = jax.tree.map(lambda *x: sum(x), *(m for m, _ in parts))
    chex.assert_trees_all_close(mean, total, rtol=1e-5)
    chex.assert_trees_all_close(
        aux.mutable, jax.tree.map(lambda *x: sum(x) / 8, *(a.mutable for _, a in parts)), rtol=1e-5)
