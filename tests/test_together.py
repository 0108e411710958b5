"""Trials trained in one compiled step are those that would have been trained alone."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxdl import cli, config, parallel
from jaxdl.checkpoint import arrays, committed
from jaxdl.clock import MEASURED
from jaxdl.models.mlp import MLP
from jaxdl.tasks.classification import Classification
from jaxdl.together import free, structure
from jaxdl.train import Program, splits
from tests import tiny

ROOT = Path(__file__).parent.parent
TINY = f"--experiment={ROOT / 'tests' / 'tiny.py'}"
DIGITS = "--experiment=mlp_digits"


def sweep(folder: Path, *arguments: str, experiment: str = TINY) -> int:
    return cli.main(["sweep", experiment, f"--workdir={folder}", "--executor=vmap", *arguments])


def logged(folder: Path) -> list[dict[str, float]]:
    """A log without what its clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.removeprefix("train/") not in MEASURED}
            for line in lines]


def assert_close(a: list[dict[str, float]], b: list[dict[str, float]], rtol: float) -> None:
    assert [line.keys() for line in a] == [line.keys() for line in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(list(x.values()), list(y.values()), rtol=rtol)


def test_sixteen_rates_and_four_seeds_are_one_program(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, compiled, loss = [], [], Classification.loss

    def counted(self: Any, *args: Any, train: bool, **options: Any) -> Any:
        traced.append(train)
        return loss(self, *args, train=train, **options)

    def compiling(self: Program) -> Any:
        compiled.append(self.trials)
        return Program_compile(self)

    Program_compile = Program.compile
    monkeypatch.setattr(Classification, "loss", counted)
    monkeypatch.setattr(Program, "compile", compiling)
    rates = ",".join(f"{x:.6g}" for x in np.geomspace(1e-4, 3e-3, 16))
    run = tmp_path / "sweep"
    assert sweep(run, f"--over=optimizer.learning_rate.peak={rates}", "--over=seed=0:4",
                 "--steps=60", "--evals.test.every=30", experiment=DIGITS) == 0
    assert traced.count(True) == 1
    assert {len(trials) for trials in compiled} == {64}
    for number in (62,):
        rate, seed = rates.split(",")[number // 4], number % 4
        alone = tmp_path / f"alone{number}"
        assert cli.main([DIGITS, f"--workdir={alone}", f"--optimizer.learning_rate.peak={rate}",
                         f"--seed={seed}", "--steps=60", "--evals.test.every=30"]) == 0
        trial = run / "trials" / f"{number:04d}"
        assert_close(logged(trial), logged(alone), 1e-4)
        a, b = (arrays(folder / "checkpoints", 60) for folder in (trial, alone))
        assert a.keys() == b.keys()
        np.testing.assert_array_equal(a["state/key"], b["state/key"])
        assert a["state/seen"] == b["state/seen"] == 60 * 64


def test_trials_begin_as_they_would_alone() -> None:
    """To the bit, and drawn one after the other: batches of matrix decompositions, of which an
    orthogonal kernel is one, can wait for each other for ever on CPU."""
    experiment = config.replace(tiny.config(), {"task.model": MLP(
        widths=(8, 8), classes=10, initial="orthogonal")})
    source, devices = splits(experiment)("train"), parallel.arrange(experiment.mesh)
    trials = [replace(experiment, seed=seed) for seed in (3, 4)]
    both = Program(experiment, source, devices, trials=[(trial, source) for trial in trials])
    text = both._draw.lower(both.knobs).as_text()
    shapes = re.findall(r"custom_call @\w*geqrf.*?: \(tensor<([\dx]+)xf32>", text)
    assert shapes and all(shape.count("x") == 1 for shape in shapes)
    states = both.init(both.knobs).state.params
    for i, trial in enumerate(trials):
        alone = Program(trial, source, devices)
        chex.assert_trees_all_equal(alone.init(alone.knobs).state.params,
                                    jax.tree.map(lambda x, i=i: x[i], states))


@pytest.fixture
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_a_trial_in_float64_is_that_trained_alone(tmp_path: Path, float64: None) -> None:
    """With dropout, batch norm, an average, augmentation, a schedule: all that has a key."""
    options = "--task.compute_dtype=float64", "--steps=24"
    run = tmp_path / "sweep"
    assert sweep(run, "--over=task.model.dropout=0.1,0.3", "--over=seed=3:5",
                 "--over=data.augment.0.pad=1", *options) == 0
    for number, rate, seed in ((1, 0.1, 4), (2, 0.3, 3)):
        alone = tmp_path / f"alone{number}"
        assert cli.main([TINY, f"--workdir={alone}", f"--task.model.dropout={rate}",
                         f"--seed={seed}", *options]) == 0
        trial = run / "trials" / f"{number:04d}"
        assert_close(logged(trial), logged(alone), 1e-9)
        a, b = (arrays(folder / "checkpoints", 24) for folder in (trial, alone))
        for path in b:
            if a[path].dtype.kind == "f":
                np.testing.assert_allclose(a[path], b[path], rtol=1e-9, atol=1e-12)
            else:
                np.testing.assert_array_equal(a[path], b[path])


def test_another_structure_is_another_program(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = [], Program._trace

    def traced(self: Program, fresh: bool) -> Any:
        steps.append(len(self.trials))
        return step(self, fresh)

    monkeypatch.setattr(Program, "_trace", traced)
    assert sweep(tmp_path / "sweep", "--over=task.model.widths=(8,),(8,8)",
                 "--over=optimizer.learning_rate.peak=1e-4,2e-4,3e-4,4e-4,5e-4,6e-4,7e-4,8e-4",
                 "--steps=8") == 0
    assert steps == [8, 8]


def test_what_is_data_and_what_is_structure() -> None:
    experiment = tiny.config()
    found = free(experiment, splits(experiment))
    assert {"seed", "task.ema", "task.model.dropout", "optimizer.learning_rate.peak",
            "optimizer.clip"} <= found
    assert not {"steps", "best.metric", "data.mean.0"} & found
    other = config.replace(experiment, {"seed": 9, "task.model.dropout": 0.5})
    assert structure(experiment, found) == structure(other, found)
    for change in ({"task.model.dropout": None}, {"steps": 39}, {"evals.test.every": 9},
                   {"task.model.widths": (32, 32)}):
        assert structure(experiment, found) != structure(config.replace(experiment, change), found)


def test_best_and_early_stopping_are_kept_apart(tmp_path: Path) -> None:
    """One that stops early is left out, and is that which stopped alone."""
    file = tmp_path / "peaks.py"
    file.write_text("""
from dataclasses import dataclass
from jaxdl.experiment import Best
from tests.tiny import shorter

@dataclass(frozen=True, kw_only=True)
class Peak:
    every: int = 4

    def __call__(self, task, state, context):
        return {"value": -abs(context.step - 1000 * task.label_smoothing)}

def config():
    from dataclasses import replace
    base = shorter(evals={"peak": Peak()}, best=Best(metric="peak/value", patience=1))
    return replace(base, task=replace(base.task, label_smoothing=0.0))
""")
    own = f"--experiment={file}"
    run, peaks = tmp_path / "sweep", (0.004, 0.032, 0.008, 0.012)
    assert sweep(run, f"--over=task.label_smoothing={','.join(map(str, peaks))}",
                 experiment=own) == 0
    for number, peak in enumerate(peaks):
        trial = run / "trials" / f"{number:04d}"
        steps = committed(trial / "checkpoints")
        assert steps == [1000 * peak, 1000 * peak + 4]
        if number > 1:  # Two of them are shown to be those trained alone.
            continue
        alone = tmp_path / f"alone{number}"
        assert cli.main([own, f"--workdir={alone}", f"--task.label_smoothing={peak}"]) == 0
        assert steps[-1] == committed(alone / "checkpoints")[-1]
        assert_close(logged(trial), logged(alone), 1e-4)
        a, b = (json.loads((folder / "checkpoints" / f"{steps[-1]}.json").read_text())["meta"]
                for folder in (trial, alone))
        assert a == b
        for step in steps:
            a, b = (arrays(folder / "checkpoints", step) for folder in (trial, alone))
            np.testing.assert_allclose(a["state/params/head/kernel"],
                                       b["state/params/head/kernel"], rtol=1e-3, atol=1e-5)
    assert "2 of 4 trials go on" in (run / "groups/0000/log.txt").read_text()


def test_a_trial_that_is_not_finite_harms_no_other(tmp_path: Path) -> None:
    run, alone = tmp_path / "sweep", tmp_path / "alone"
    assert sweep(run, "--over=optimizer.weight_decay=0.001,1e30,0.002", "--steps=20") == 0
    assert cli.main([TINY, f"--workdir={alone}", "--optimizer.weight_decay=0.002",
                     "--steps=20"]) == 0
    assert_close(logged(run / "trials/0002"), logged(alone), 1e-4)
    text = (run / "results.csv").read_text()
    assert text.count(",done,") == 2
    failed, = [line for line in text.splitlines() if line.startswith("1,failed,")]
    assert "not finite; a lower learning rate, optimizer.clip or nonfinite=skip may help" in failed
    assert not list((run / "groups").glob("*/checkpoints"))


def test_trials_that_all_fail_are_told_as_such(tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """In the step of an evaluation and of a line of the log."""
    run = tmp_path / "sweep"
    sweep(run, "--over=optimizer.weight_decay=1e30,2e30", "--steps=8", "--log_every=8")
    assert (run / "results.csv").read_text().count(",failed,") == 2
    assert "one by one" not in capsys.readouterr().out


def test_a_float_that_is_used_as_structure_becomes_structure(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "asks.py"
    file.write_text("""
from dataclasses import dataclass, replace
from jaxdl.models.mlp import MLP
from jaxdl.tasks.classification import Classification
from jaxdl.models.mlp import MLP
from tests.tiny import plain

@dataclass(frozen=True, kw_only=True)
class Asks(Classification):
    scale: float = 1.0
    other: float = 1.0

    def loss(self, variables, batch, key, *, train):
        mean, aux = super().loss(variables, batch, key, train=train)
        if self.scale > 1:
            mean = replace(mean, total=mean.total * self.scale)
        return replace(mean, total=mean.total * self.other), aux

def config():
    return plain(task=Asks(model=MLP(widths=())))
""")
    assert sweep(tmp_path / "sweep", "--over=task.scale=1.0,2.0", "--over=task.other=1.0,2.0,3.0",
                 experiment=f"--experiment={file}") == 0
    said = capsys.readouterr().out
    assert said.count("note: task.scale: the code asks this float a question") == 1
    assert said.count("done") >= 6
    losses = [logged(tmp_path / f"sweep/trials/{i:04d}")[0]["train/loss"] for i in range(6)]
    assert losses[1] / losses[0] == pytest.approx(2, rel=0.2) and losses[3] > losses[0] * 1.5


def test_an_evaluator_of_any_kind_sees_each_trial(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("""
from dataclasses import dataclass, replace
import jax
from jaxdl.evaluate import Evaluate
from tests.tiny import plain

@dataclass(frozen=True, kw_only=True)
class Own:
    every: int = 3

    def __call__(self, task, state, context):
        assert state.step.shape == ()
        (context.folder / "seen").write_text(str(float(task.ema or 0)))
        return {"sum": sum(float(abs(x).sum()) for x in jax.tree.leaves(state.params))}

def config():
    base = plain(evals={"own": Own(), "test": Evaluate(every=3)})
    return replace(base, task=replace(base.task, ema=0.5))
""")
    run, alone = tmp_path / "sweep", tmp_path / "alone"
    own = f"--experiment={file}"
    assert sweep(run, "--over=seed=0:2", "--metric=own/sum", experiment=own) == 0
    assert cli.main([own, f"--workdir={alone}", "--seed=1"]) == 0
    assert_close(logged(run / "trials/0001"), logged(alone), 1e-4)
    assert (run / "trials/0000/seen").read_text() == "0.5"


def test_a_mesh_of_devices_trains_them_as_one_device(tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Some arrays are split over two devices, the smaller ones are not."""
    run, split = tmp_path / "one", tmp_path / "eight"
    options = "--over=seed=0:2", "--steps=8", "--task.model.widths=(512,)"
    assert sweep(run, *options) == 0
    assert sweep(split, *options, "--mesh.data=4", "--mesh.fsdp=2") == 0
    assert "one by one" not in capsys.readouterr().out
    for number in range(2):
        assert_close(logged(run / f"trials/{number:04d}"), logged(split / f"trials/{number:04d}"),
                     1e-4)


def test_programs_of_one_structure_are_shared_one_by_one() -> None:
    experiment = tiny.config()
    from jaxdl import parallel

    devices = parallel.arrange(experiment.mesh, experiment.rules)
    source: Any = splits(experiment)("train")
    first = Program(experiment, source, devices)
    other = first.of(replace(experiment, seed=5), source)
    assert other.step is first.step and other.compiled is first.compiled
    assert int(other.knobs[1]) == 5 and int(first.knobs[1]) == 0
    batch = next(iter(other.plan(0, 1)[0]["index"][None]))
    np.testing.assert_array_equal(batch, source.index(5, 0, experiment.batch_size))


def test_a_group_goes_on_of_which_the_first_have_ended(tmp_path: Path) -> None:
    """By NaN and by early stopping; then the others are left, and continued."""
    file = tmp_path / "own.py"
    file.write_text("""
import os
import signal
from dataclasses import dataclass, replace
from jaxdl.experiment import Best
from tests.tiny import shorter

@dataclass(frozen=True, kw_only=True)
class Peak:
    every: int = 4

    def __call__(self, task, state, context):
        mark = context.folder.parent.parent / "left"
        if context.step == 28 and task.label_smoothing > 0.02 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return {"value": -abs(context.step - 1000 * task.label_smoothing)}

def config():
    base = shorter(evals={"peak": Peak()}, best=Best(metric="peak/value", patience=1))
    return replace(base, task=replace(base.task, label_smoothing=0.0))

def sweep():
    nan, rate = {"optimizer.weight_decay": 1e30}, "task.label_smoothing"
    return [{rate: 0.03, **nan}, {rate: 0.004}, {rate: 0.032}, {rate: 0.036}, {rate: 0.04}]
""")
    own, run = f"--experiment={file}", tmp_path / "sweep"
    assert sweep(run, experiment=own) == 75
    assert sweep(run, experiment=own) == 0
    text = (run / "results.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in sorted(text[1:])] == [
        "failed", "done", "done", "done", "done"]
    for number, peak in ((3, 0.036),):
        alone = tmp_path / f"alone{number}"
        (tmp_path / "left").touch()
        assert cli.main([own, f"--workdir={alone / 'x' / 'y'}",
                         f"--task.label_smoothing={peak}"]) in (0, 75)
        assert cli.main([own, f"--workdir={alone / 'x' / 'y'}",
                         f"--task.label_smoothing={peak}"]) == 0
        assert_close(logged(run / "trials" / f"{number:04d}"), logged(alone / "x" / "y"), 1e-3)
