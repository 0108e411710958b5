"""Numbers that are not finite, wherever they arise: the policy holds, and no checkpoint has them.

One example of a known step brings the fault: a code in the data says which, so that one compiled
program serves all cases of a policy. Most run the steps without the loop around them.
"""

import dataclasses
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import checkpoint, display, parallel, train
from jaxdl.checkpoint import Checkpoints, committed
from jaxdl.data.source import Arrays, permutation
from jaxdl.errors import RunError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.nonfinite import NonFinite, finite_or_raise
from jaxdl.optimizer import SGD, Constant
from jaxdl.resume import metrics
from jaxdl.task import Aux, Mean, named, over_devices
from jaxdl.tasks.classification import Classification
from tests.test_train import fit
from tests.tiny import plain

SIZE, BATCH, STEP, ROW = 160, 16, 7, 11  # the fault is in one row of the batch of one step
# What goes wrong: its code in the data, the value that appears, and what the message names.
CASES = {
    "loss NaN": (1, math.nan, "step 7: loss is"), "loss Inf": (1, math.inf, "step 7: loss is"),
    "loss -Inf": (1, -math.inf, "step 7: loss is"),
    "gradient NaN": (2, math.nan, "step 7: grad_norm is"),
    "another metric NaN": (3, math.nan, "step 7: accuracy is"),
    "another metric Inf": (3, math.inf, "step 7: accuracy is"),
    # One step later: to look through the parameters at each step would cost an MLP 8 %.
    "parameters NaN": (4, math.nan, "step 8: loss, grad_norm are"),
    "parameters Inf": (4, math.inf, "step 8: loss, grad_norm are"),
    "pixel NaN": (5, math.nan, "step 7: loss, grad_norm are"),
    "pixel Inf": (5, math.inf, "step 7: loss, grad_norm are"),
    "label of no class": (6, 12, "step 7: loss, grad_norm are"),
    "label below zero": (6, -1, "step 7: loss, grad_norm are"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(Classification):
    """Classification of data that says what goes wrong."""

    def loss(self, variables: Any, batch: Any, key: Any, *, train: bool) -> tuple[Mean, Aux]:
        mean, aux = super().loss(variables, batch, key, train=train)
        if not train:
            return mean, aux
        # Each by one term: 0 without the fault. The square root of 0 has an infinite slope.
        ok = 1. - (batch["code"] == 2).any()
        weight = sum(x.sum() for x in jax.tree.leaves(variables["params"]))
        total = (mean.total + _brought(batch, 1)
                 + jnp.sqrt(ok + 0. * weight) - jax.lax.stop_gradient(jnp.sqrt(ok)))
        accuracy = aux.metrics["accuracy"]
        accuracy = Mean(accuracy.total + _brought(batch, 3), accuracy.count)
        return Mean(total, mean.count), dataclasses.replace(
            aux, metrics={**aux.metrics, "accuracy": accuracy})

    def step(self, state: Any, batch: Any, tx: Any) -> Any:
        new, found = super().step(state, batch, tx)
        more = over_devices(_brought(batch, 4))
        return dataclasses.replace(new, params=jax.tree.map(lambda x: x + more, new.params)), found


def _brought(batch: Any, code: int) -> jax.Array:
    return jnp.where(batch["code"] == code, batch["value"], 0.).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    """Noise in ten classes, and one fault in the first epoch."""

    case: str | None
    stand_in: None = None

    def open(self, split: str) -> Arrays:
        rng = np.random.default_rng(0)
        found: dict[str, Any] = {
            "image": rng.normal(size=(SIZE, 4, 4, 1)).astype(np.float32),
            "label": rng.integers(0, 10, SIZE).astype(np.int32),
            "code": np.zeros(SIZE, np.int32), "value": np.zeros(SIZE, np.float32)}
        if split == "train" and self.case is not None:
            i, (code, value, _) = permutation(0, 0, SIZE)[STEP * BATCH + ROW], CASES[self.case]
            if code == 5:
                found["image"][i, 2, 3] = value
            elif code == 6:
                found["label"][i] = value
            else:
                found["code"][i], found["value"][i] = code, value
        return Arrays(arrays=found)

    def prepare(self) -> None:
        pass

    def fingerprint(self) -> str:
        return str(self.case)


def faulty(case: str | None, **changes: Any) -> Experiment:
    return plain(**{
        "task": Faulty(model=MLP(widths=(8,), batch_norm=True), ema=0.9),
        "data": Planted(case=case), "batch_size": BATCH, "steps": SIZE // BATCH, "log_every": 1,
        "optimizer": SGD(learning_rate=Constant(peak=0.1), momentum=0.9), **changes})


def program(policy: Any, mode: Any) -> train.Program:
    experiment = faulty(None, nonfinite=policy, parallel=mode, mesh=Mesh(data=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "FUSED", 1)
        return train.Program(experiment, experiment.data.open("train"),
                             parallel.arrange(experiment.mesh))


def run(of: train.Program, case: str | None) -> tuple[list[dict[str, bytes]], list[train.Window]]:
    """(the state, the window) before the first step and after each."""
    of.arrays = of.devices.replicate(Planted(case=case).open("train").arrays)
    carry, plan = of.init(of.knobs), of.plan(0, SIZE // BATCH)
    states, windows = [], []
    for i in range(len(plan) + 1):
        states.append({p: _bytes(x) for p, x in named(carry.state).items()})
        windows.append(jax.device_get(carry.window))
        if i < len(plan):
            carry = of.advance(carry, [plan[i]])
    return states, windows


def _bytes(x: jax.Array) -> bytes:
    key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x).tobytes()


def changed(a: dict[str, bytes], b: dict[str, bytes]) -> set[str]:
    return {path for path in a if a[path] != b[path]}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_each_fault_meets_the_policy_at_its_step(policy: str, mode: str) -> None:
    """On eight devices, of which one alone has the row; as one program and as eight.

    stop: the message names the step and what was not finite. skip: the state after the step is the
    state before it, one step on, and the next step changes it again.
    """
    of = program(policy, mode)
    good, quiet = run(of, None)
    assert quiet[-1].halted == -1 and quiet[-1].skipped == 0
    assert all(finite_or_raise(window) is window for window in quiet)
    for case, (_, _, text) in CASES.items():
        states, windows = run(of, case)
        assert not any(changed(*pair) for pair in zip(states[:STEP + 1], good, strict=False)), case
        if policy == "stop":
            with pytest.raises(NonFinite) as error:
                finite_or_raise(windows[-1])
            assert f"step {error.value.step}: {error.value.names}" == text
            assert [int(w.halted) for w in windows] == [
                -1 if i <= error.value.step else error.value.step for i in range(len(windows))]
        else:
            assert changed(states[STEP], states[STEP + 1]) == {"step", "seen"}, case
            assert {"step", "seen"} < changed(states[STEP + 1], states[STEP + 2]), case
            assert [int(w.skipped) for w in windows] == [0] * (STEP + 1) + [1] * 3, case
            assert windows[-1].halted == -1
            values = [m.total for m in windows[-1].means.values()] + [*windows[-1].last.values()]
            assert np.isfinite(values).all(), case  # Nor does the log show it.


def saved(folder: Path) -> list[int]:
    """The committed steps, all of whose arrays are finite."""
    steps = committed(folder / "checkpoints")
    for step in steps:
        for path, x in checkpoint.arrays(folder / "checkpoints", step).items():
            assert np.isfinite(x).all(), f"{path} of step {step}"
    return steps


@pytest.mark.parametrize(("case", "changes", "text", "steps"), [
    ("pixel NaN", {"save_every": 4}, "step 7: loss, grad_norm are", [4]),
    ("parameters Inf", {"save_every": 7}, "step 8: loss, grad_norm are", [7]),
    ("parameters NaN", {"save_every": 4}, "step 8: parameters are", [4]),  # when a save is due
    ("parameters NaN", {"steps": 8, "save_every": 7}, "step 8: parameters are", [7]),  # at the end
    ("loss Inf", {"log_every": 10, "save_every": 99}, "step 7: loss is", []),  # in one dispatch
])
def test_no_state_that_is_not_finite_is_committed(
        tmp_path: Path, case: str, changes: dict[str, int], text: str, steps: list[int]) -> None:
    with pytest.raises(RunError) as error:
        fit(tmp_path, faulty(case, **changes))
    newest = f" The newest checkpoint is of step {steps[-1]}." if steps else ""
    before = " one step before, at step 7," if "parameters" in case else ""
    name = "image" if "pixel" in case else "value"
    example = permutation(0, 0, SIZE)[STEP * BATCH + ROW]
    assert str(error.value) == (
        f"{tmp_path}: {text} not finite. It began{before} in the data: 1 of the values of "
        f'"{name}", in 1 of 16 examples (id {example}); the batch is in '
        f"{tmp_path}/nonfinite/step_7.npz, a "
        f"table of the layers beside it.{newest} Mend such examples or leave them out; "
        "--nonfinite=skip passes them over.")
    assert saved(tmp_path) == steps
    assert all(line["step"] <= STEP + 1 for line in metrics(tmp_path))


def test_a_run_that_skips_goes_on_and_says_how_often(tmp_path: Path) -> None:
    fit(tmp_path, faulty("parameters Inf", nonfinite="skip", log_every=5))
    assert saved(tmp_path) == [6, 10]
    lines = {line["step"]: line.get("train/skipped") for line in metrics(tmp_path)}
    assert lines == {5: None, 10: 1.0}


# Ranking (row 34).


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_neither_ends_the_run_nor_ranks(tmp_path: Path,
                                                                    value: float) -> None:
    class Odd(Evaluate):
        def __call__(self, task: Any, state: Any, context: Any) -> dict[str, float]:
            return {"score": value if context.step == 4 else 0.25 * context.step}

    progress = fit(tmp_path, faulty(None, evals={"eval": Odd(every=2)}, save_every=9, keep=1,
                                    log_every=99, steps=6, best=Best(metric="eval/score")))
    assert (progress.best, progress.best_step) == (1.5, 6)
    assert {line["step"]: line["eval/score"] for line in metrics(tmp_path)
            if "eval/score" in line} == {2: 0.5, 4: None, 6: 1.5}
    assert saved(tmp_path) == [6]


class Nothing:
    """Stands for the rest of the loop: any part of it, called or entered, does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def ranked(values: tuple[float, ...], mode: Any, patience: int | None = None) -> list[Any]:
    """(best step, evaluations waited) after each evaluation, by the loop's own method."""
    loop: Any = Nothing()  # and its experiment, which it is itself
    loop.progress, loop.due = train.Progress(), lambda step: ["eval"]
    loop.bar = display.Bar(0, len(values))
    loop.best = Best(metric="eval/score", mode=mode, patience=patience)
    found: list[Any] = []
    for step, value in enumerate(values):
        loop.evals = {"eval": lambda *args, value=value: {"score": value}}
        improved, progress = train.Fit.evaluate(loop, step, Nothing()), loop.progress  # type: ignore
        assert improved == (progress.best_step == step)
        best = None if progress.best_step is None else values[progress.best_step]
        assert repr(progress.best) == repr(best)  # as NaN is not NaN
        found.append((progress.best_step, progress.waited))
        if progress.stopped:
            break
    return found


def policy(values: tuple[float, ...], mode: str) -> int | None:
    """Which of the evaluations is the best: the first of the finite ones that none surpasses."""
    finite = [(v if mode == "max" else -v, -i) for i, v in enumerate(values) if math.isfinite(v)]
    return -max(finite)[1] if finite else None


VALUES = (.3, .5, .4, math.nan, math.inf, -math.inf)
ORDERS = [order for n in range(1, 6) for order in itertools.permutations(VALUES, n)]
TWICE = list(itertools.product(VALUES, repeat=3))


def test_the_best_is_that_of_the_finite_ones_in_every_order() -> None:
    """All 1,236 orders of up to five of six values, and all 216 of three that may be equal."""
    assert len(ORDERS) == 1236
    for mode, values in itertools.product(("max", "min"), ORDERS + TWICE):
        found, waited = ranked(values, mode, patience=2), 0
        for i, (best, waits) in enumerate(found):
            assert best == policy(values[:i + 1], mode), (mode, values)
            waited = 0 if best == i else waited + 1
            assert waits == waited and (waited < 2 or i == len(found) - 1), (mode, values)
        assert waited == 2 or len(found) == len(values)


@pytest.mark.parametrize("better", [
    lambda value, than, mode: than is None or (value > than if mode == "max" else value < than),
    lambda value, than, mode: than is None or not (value <= than if mode == "max"
                                                   else value >= than)])
def test_plain_comparisons_would_not_do(better: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first, a NaN that comes first stays for ever; with the second each replaces all."""
    monkeypatch.setattr(train, "better", better)
    wrong = [values for values in ORDERS
             if ranked(values, "max")[-1][0] != policy(values, "max")]
    assert len(wrong) > 500


@pytest.mark.parametrize(("mode", "keep"), [("max", 1), ("min", 1), ("max", 2)])
def test_the_best_checkpoint_survives_every_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  keep: int, mode: str) -> None:
    """The newest ones stay, and what each of them calls the best; nothing else. Only Orbax, and the
    waiting for the disk, are left out."""
    monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: None)
    for n, values in enumerate(itertools.permutations(
            (.3, .5, math.nan, math.inf if mode == "max" else -math.inf))):
        folder = tmp_path / str(n) / "checkpoints"
        store = Checkpoints.__new__(Checkpoints)
        store.folder, store.keep, store.arrays = folder, keep, folder / "arrays"
        store._error, orbax = None, Nothing()
        store._manager = orbax
        orbax.delete = lambda step, folder=folder: shutil.rmtree(folder / "arrays" / str(step))
        found = ranked(values, mode)
        for step, (best, _) in enumerate(found):
            (store.arrays / str(step) / "default").mkdir(parents=True)
            (store.arrays / str(step) / "default" / "manifest.ocdbt").touch()
            (folder / f"{step}.pending").touch()
            store._finish(step, {"format": checkpoint.FORMAT, "step": step, "arrays": {},
                                 "meta": {"progress": {"best_step": best}}}, best)
            store.poll()
            kept = range(max(0, step + 1 - keep), step + 1)
            bests = {policy(values[:s + 1], mode) for s in kept} - {None}
            assert set(committed(folder)) == {*kept, *bests}, values
        if best is not None:
            assert checkpoint.select(folder.parent, "best") == policy(values, mode)
