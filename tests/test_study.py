"""The `sweep` command: what is declared, what is refused, what comes of it."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxdl import cli, study, workers
from jaxdl.checkpoint import committed
from jaxdl.errors import UserError
from jaxdl.ledger import Entry, Ledger
from tests.test_cli import error
from tests.test_together import logged

ROOT = Path(__file__).parent.parent
PLAIN = """
from tests.tiny import plain, shorter
from jaxdl.sweep import *

def config():
    from jaxdl.evaluate import Evaluate
    from jaxdl.experiment import Best
    return plain(evals={"test": Evaluate(every=2)}, best=Best(metric="test/accuracy"), steps=8)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(PLAIN + '''
def sweep():
    return grid(**{"optimizer.learning_rate.peak": (0.01, 0.1), "seed": range(2)})
''')
    return path


def run(file: Path, *arguments: str, executor: str = "sequential") -> tuple[int, Path]:
    folder = file.parent / "sweep"
    return cli.main(["sweep", f"--experiment={file}", f"--workdir={folder}",
                     f"--executor={executor}", *arguments]), folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_sweep_of_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, folder = run(file)
    said = capsys.readouterr().out
    assert status == 0
    found = rows(folder)
    assert len(found) == 4 and {row["state"] for row in found} == {"done"}
    values = [float(row["value"]) for row in found]
    assert values == sorted(values, reverse=True)
    assert [row["trial"] for row in found[:1]] == [os.readlink(folder / "best")[-1:]]
    for row in found:
        trial = folder / "trials" / f"{int(row['trial']):04d}"
        assert committed(trial / "checkpoints") and not (trial / "checkpoints/quarantine").exists()
        best = max(line["test/accuracy"] for line in logged(trial) if "test/accuracy" in line)
        assert best == float(row["value"])
        assert (trial / "overrides.txt").read_text() == (
            f"optimizer.learning_rate.peak={float(row['optimizer.learning_rate.peak'])}\n"
            f"seed={row['seed']}\n")
    assert "peak  test/accuracy, mean" in " ".join(said.split()).replace("peak test", "peak  test")
    assert f"--experiment={folder / 'best'} uses it" in said and "4 done in" in said
    page = (folder / "report.html").read_text()
    assert "Sweep of own" in page and "test/accuracy" in page

    assert cli.main(["evaluate", f"--experiment={folder / 'best'}", "--step=best"]) == 0
    assert f"{values[0]:.6g}" in capsys.readouterr().out
    # The same command has nothing to do; a longer list adds trials.
    before = {p: p.stat().st_mtime_ns for p in (folder / "trials").rglob("*")}
    assert run(file)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "trials").rglob("*")} == before
    assert "4 of them have ended" in capsys.readouterr().out
    file.write_text(PLAIN + '''
def sweep():
    return grid(**{"optimizer.learning_rate.peak": (0.01, 0.1, 0.2), "seed": range(2)})
''')
    assert run(file, "--accept_changes")[0] == 0 and len(rows(folder)) == 6


def test_trials_are_the_same_however_they_are_trained(file: Path) -> None:
    found = {}
    for executor in ("sequential", "vmap", "auto", "processes"):
        status, folder = run(file, "--workers=2", executor=executor)
        assert status == 0
        found[executor] = [
            [(line["step"], round(line["test/loss"], 4)) for line in logged(place)
             if "test/loss" in line] for place in sorted((folder / "trials").iterdir())]
        shutil.rmtree(folder)
    assert len(found["vmap"][0]) == 4
    assert all(each == found["sequential"] for each in found.values())


@pytest.mark.parametrize(("body", "arguments", "message"), [
    (None, [], "own has no sweep(); --over PATH=VALUE,VALUE declares one."),
    ("return []", [], "the sweep is empty: it has no trials."),
    ("return 3", [], "sweep() returned a int: expected a list of trials, as grid() returns it."),
    ("return [3]", [], "trial 0 is a int: expected a mapping from paths to values."),
    ("return [{'steps': 4}, {'steps': 4}]", [], "trials 0 and 1 are the same: steps=4."),
    ("return [{'optimizer.learning_rat.peak': 4}]", [],
     "trial 0: optimizer.learning_rat.peak: Experiment has no such field. Did you mean "
     "'optimizer.learning_rate.peak'?"),
    ("return [{'steps': 2.5}]", [], "trial 0: steps=2.5: expected int, at least 1."),
    ("return [{'optimizer.learning_rate.peak': 'x'}]", [],
     "trial 0: optimizer.learning_rate.peak='x': expected float, at least 0."),
    ("return [{'optimizer': 1.0}]", [],
     "trial 0: optimizer=1.0: expected Optimizer or Mapping."),
    ("return [{'data': config().task.model}]", [], "expected Data."),
    ("return [{'optimizer.learning_rate': 0.1}]", [], "0.1: expected Schedule."),
    ("return [{'evals.test': config().data}]", [], "expected Evaluator."),
    ("return [{'optimizer': config().optimizer, 'optimizer.clip': 1.0}]", [],
     "trial 0: optimizer.clip is a part of optimizer, which the trial sets, too."),
    ("return undefined", [], "own.py:11: name 'undefined' is not defined"),
    ("return Sweep(trials=grid(seed=[1]), prune='asha', metric='tst/accuracy')", [],
     "the metric tst/accuracy: expected EVALUATOR/METRIC, with one of evals: test. Did you mean "
     "'test'?"),
    ("return optuna_(3, **{'steps': uniform(1, 2)})", [],
     "the space of optuna_(): steps=1.0: expected int, at least 1."),
    ("return optuna_(3, **{'seed': integers(1, 2)})", ["--seeds=3"],
     "--seeds: repeats the trials of a list, and Optuna chooses these."),
    ("return grid(seed=[1])", ["--seeds=3"], "repeat: the trials vary the seed already."),
    ("return grid(seed=[1])", ["--executor=vmpa"],
     "--executor=vmpa: expected 'auto' or 'vmap' or 'sequential' or 'processes' or 'ray' or "
     "'slurm'. Did you mean 'vmap'?"),
    ("return []", ["--over=seed"], "--over seed: expected PATH=VALUE,VALUE."),
    ("return []", ["--over=sed=1,2"], "--over sed=1,2: --sed: no such field. Did you mean --seed?"),
    ("return []", ["--over=steps=1,x"], "--over steps=1,x: --steps=x: expected int, at least 1."),
    ("return []", ["--over=seed=0:4:0"], "--over seed=0:4:0: a step of 0 leads nowhere."),
    ("return []", ["--over=seed=0,1", "--over=seed=2,3"], "--over seed=2,3: seed is there twice."),
    ("return Sweep(trials=grid(seed=[1]), mode='maximum')", [],
     "Sweep(mode='maximum'): expected 'max' or 'min' or None."),
    ("return Sweep(trials=grid(seed=[1]), prune='hyperband')", [],
     "Sweep(prune='hyperband'): expected 'asha' or 'median' or None."),
    ("return Sweep(trials=grid(seed=[1]), factor=1)", [],
     "Sweep(factor=1): expected int, at least 2."),
    ("return []", ["--over=seed=3:3"], "--over seed=3:3: the range is empty."),
    ("return []", ["--over=workers=1,2"],
     "--over workers=1,2: workers is an option, not a leaf of the experiment."),
    ("return []", ["--over=seed=1,1"], "trials 0 and 1 are the same: seed=1."),
])
def test_what_is_no_sweep_is_one_line(file: Path, capfd: pytest.CaptureFixture[str],
                                      body: str | None, arguments: list[str],
                                      message: str) -> None:
    file.write_text(PLAIN + ("" if body is None else f"\ndef sweep():\n    {body}\n"))
    folder = file.parent / "sweep"
    said = error(capfd, "sweep", f"--experiment={file}", f"--workdir={folder}", *arguments)
    assert said.endswith(message), said
    assert not (folder / "trials").exists()


def test_values_are_typed_as_their_leaves(file: Path) -> None:
    module = study.files.load(file)
    experiment = study.files.build(module)
    checked = study.checked(experiment, {"optimizer.learning_rate.peak": 1, "task.model.widths":
                                         [3, 4], "optimizer.clip": None, "seed": 4}, "trial 0")
    assert checked == {"optimizer.learning_rate.peak": 1.0, "task.model.widths": (3, 4),
                       "optimizer.clip": None, "seed": 4}
    assert type(checked["optimizer.learning_rate.peak"]) is float and type(checked["seed"]) is int
    assert study.checked(experiment, {"optimizer": experiment.optimizer}, "")  # a whole sub-tree


def test_over_the_command_line(file: Path) -> None:
    status, folder = run(file, "--over", "task.model.widths=(4,),(4,4)", "--over=seed=0:4:2",
                         "--steps=2")
    assert status == 0
    book = Ledger(folder / "ledger.sqlite")
    assert [e.overrides for e in book.trials()] == [
        {"task.model.widths": [4], "seed": 0}, {"task.model.widths": [4], "seed": 2},
        {"task.model.widths": [4, 4], "seed": 0}, {"task.model.widths": [4, 4], "seed": 2}]
    assert json.loads((folder / "sweep.json").read_text())["flags"] == [
        "--over=task.model.widths=(4,),(4,4)", "--over=seed=0:4:2", "--steps=2"]


def test_a_trial_that_cannot_be_trained_fails_alone(file: Path,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    for executor in ("sequential", "vmap"):
        status, folder = run(file, "--over=batch_size=128,100,64", "--mesh.data=8",
                             executor=executor)
        assert status == 0
        states = {row["batch_size"]: (row["state"], row["reason"]) for row in rows(folder)}
        assert states["128"] == states["64"] == ("done", "")
        assert states["100"][0] == "failed"
        assert states["100"][1].startswith("batch_size=100 is not divisible by mesh.data=8")
        shutil.rmtree(folder)
    status, folder = run(file, "--over=optimizer.weight_decay=1e38,2e38", "--steps=8")
    assert status == 1  # all of them
    assert all("not finite" in row["reason"] for row in rows(folder))
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_sweep_of_something_else_is_refused(file: Path,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    _, folder = run(file, "--over=seed=0:2", "--steps=2")
    capfd.readouterr()
    command = ["sweep", f"--experiment={file}", f"--workdir={folder}"]
    assert "holds another sweep: its trial 1 (seed=1) is not declared now." in error(
        capfd, *command, "--over=seed=0:1", "--steps=2")
    assert "holds a sweep of another experiment (steps: 2 then, 4 now)" in error(
        capfd, *command, "--over=seed=0:2", "--steps=4")
    (file.parent / "other").mkdir()
    (file.parent / "other" / "x").touch()
    assert error(capfd, *command[:2], f"--workdir={file.parent / 'other'}", "--over=seed=0:2"
                 ).endswith("is not empty and not a sweep.")
    lock = study.Lock(folder)
    assert f"{folder} is in use by process {os.getpid()}" in error(
        capfd, *command, "--over=seed=0:2", "--steps=2")
    lock.release()


@pytest.mark.parametrize("executor", ["vmap", "processes"])
def test_a_killed_sweep_goes_on(file: Path, executor: str) -> None:
    """SIGKILL as soon as the first trial is on disk, or the first checkpoint of all."""
    straight = file.parent / "straight"
    options = ["--steps=400", "--save_every=20", "--evals.test.every=100", "--log_every=20"]
    assert run(file, *options, executor=executor)[0] == 0
    (file.parent / "sweep").rename(straight)
    folder = file.parent / "sweep"
    command = [sys.executable, str(ROOT / "launch.py"), "sweep", f"--experiment={file}",
               f"--workdir={folder}", f"--executor={executor}", "--workers=2", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("*/*/checkpoints/*.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [e.state for e in Ledger(folder / "ledger.sqlite").trials()] == ["done"] * 4
    for number in range(4):
        name = f"trials/{number:04d}"
        assert logged(folder / name) == logged(straight / name)
        assert committed(folder / name / "checkpoints")[-1] == 400


def test_a_signal_saves_and_the_same_command_goes_on(file: Path) -> None:
    folder = file.parent / "sweep"
    command = [sys.executable, str(ROOT / "launch.py"), "sweep", f"--experiment={file}",
               f"--workdir={folder}", "--executor=processes", "--workers=2", "--steps=200000",
               "--save_every=100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    while process.poll() is None and sum(
            path.stat().st_size > 0 for path in folder.glob("trials/*/metrics.jsonl")) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (
        75, f"SIGTERM: saved; continue with --workdir={folder}\n")
    assert len([p for p in folder.glob("trials/*/checkpoints") if committed(p)]) == 2
    assert {e.state for e in Ledger(folder / "ledger.sqlite").trials()} == {"pending"}


def test_a_worker_that_is_killed_begins_again_a_few_times(file: Path) -> None:
    file.write_text(PLAIN.replace("def config():", '''
import os
from dataclasses import dataclass
from jaxdl.data.digits import Digits

@dataclass(frozen=True, kw_only=True)
class Killing(Digits):
    kill: bool = False

    def open(self, split):
        if self.kill and split == "train":
            os.kill(os.getpid(), 9)
        return super().open(split)

def config():''').replace("plain(", "plain(data=Killing(size=8, channels=1), "))
    status, folder = run(file, "--over=data.kill=False,True", "--workers=1", "--retries=1",
                         executor="processes")
    # The one that leads opens the data of no trial before it is trained.
    assert status == 0
    good, bad = sorted(rows(folder), key=lambda row: row["trial"])
    assert good["state"] == "done" and bad["state"] == "failed"
    assert bad["reason"] == "its process was killed by SIGKILL (out of memory?)"
    assert [e.attempts for e in Ledger(folder / "ledger.sqlite").trials()] == [0, 2]


def test_a_float_that_is_used_as_structure_is_not_shared(file: Path) -> None:
    file.write_text("""
from dataclasses import dataclass, replace
from jaxdl.tasks.classification import Classification
from jaxdl.models.mlp import MLP
from tests.tiny import plain

@dataclass(frozen=True, kw_only=True)
class Asks(Classification):
    scale: float = 1.0

    def loss(self, variables, batch, key, *, train):
        mean, aux = super().loss(variables, batch, key, train=train)
        return replace(mean, total=mean.total * self.scale if self.scale > 1 else mean.total), aux

def config():
    return plain(task=Asks(model=MLP(widths=())))
""")
    for executor in ("sequential", "vmap"):
        status, folder = run(file, "--over=task.scale=1.0,2.0,4.0", executor=executor)
        assert status == 0
        losses = [logged(folder / f"trials/{i:04d}")[0]["train/loss"] for i in range(3)]
        assert losses[1] > 1.2 * losses[0] and losses[2] > 1.2 * losses[1]
        shutil.rmtree(folder)


GOES_WRONG = PLAIN.replace("def config():", """
from dataclasses import dataclass, replace

@dataclass(frozen=True, kw_only=True)
class Wrong:
    every: int = 2

    def __call__(self, task, state, context):
        if task.label_smoothing == 0.25:
            open("/nowhere/at/all")
        if task.label_smoothing == 0.5:
            raise ValueError("mine")
        return {"fine": 1.0}

def config():""").replace("return plain(evals={", "base = plain(evals={'own': Wrong(), ") + """
    return replace(base, task=replace(base.task, label_smoothing=0.0))
"""


@pytest.mark.parametrize("executor", ["sequential", "vmap", "processes"])
def test_what_a_trial_raises_is_its_own(file: Path, executor: str,
                                        capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOES_WRONG)
    status, folder = run(file, "--over=task.label_smoothing=0.0,0.25,0.5,0.125", "--workers=1",
                         executor=executor)
    assert status == 0 and "Traceback" not in "".join(capfd.readouterr())
    found = {row["trial"]: row for row in rows(folder)}
    assert [found[str(i)]["state"] for i in range(4)] == ["done", "failed", "failed", "done"]
    assert found["1"]["reason"].startswith("FileNotFoundError: [Errno 2] No such file")
    assert found["2"]["reason"].startswith("ValueError: mine (")


def test_a_full_disk_ends_the_sweep_and_no_trial(file: Path, capfd: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    full = collections.namedtuple("full", "free")(10)
    for executor in ("sequential", "vmap"):
        with monkeypatch.context() as patch:
            patch.setattr("jaxdl.checkpoint.shutil.disk_usage", lambda path: full)
            status, folder = run(file, executor=executor)
        err = capfd.readouterr().err
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
        assert "bytes, 10 are free" in err
        assert {e.state for e in Ledger(folder / "ledger.sqlite").trials()} <= {
            "pending", "running"}
        assert run(file, executor=executor)[0] == 0
        assert {row["state"] for row in rows(folder)} == {"done"}
        shutil.rmtree(folder)


def test_a_metric_that_is_not_there_is_told_at_once(file: Path,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    status, _ = run(file, "--metric=test/acuracy")
    assert status == 1
    assert capfd.readouterr().err == ("error: the metric test/acuracy: the evaluator has no such "
                                      "metric. Did you mean 'test/accuracy'?\n")


def test_what_a_stand_in_does_not_have_is_told_before_anything_is_trained(
        tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxdl.data import cifar
    from jaxdl.errors import DataMissing

    def missing(self: Any) -> None:
        raise DataMissing("CIFAR-10 is not here, for the test.")

    monkeypatch.setattr(cifar.Cifar10, "prepare", missing)
    monkeypatch.chdir(ROOT)
    assert cli.main(["sweep", "--experiment=resnet_cifar", f"--workdir={tmp_path / 'sweep'}",
                     "--over=data.augment.0.pad=1,2"]) == 2
    told = capfd.readouterr().err
    assert told.endswith("The data is a stand-in (Digits in place of Cifar10), which has no such "
                         "leaf.\n") and told.count("\n") == 1
    assert not (tmp_path / "sweep/trials").exists()


def test_another_metric_ranks_anew(file: Path) -> None:
    assert run(file)[0] == 0
    status, folder = run(file, "--metric=test/loss", "--mode=min")
    assert status == 0
    for row in rows(folder):
        trial = folder / f"trials/{int(row['trial']):04d}"
        assert float(row["value"]) == min(
            line["test/loss"] for line in logged(trial) if "test/loss" in line)


def test_without_a_metric_nothing_is_ranked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace('best=Best(metric="test/accuracy"), ', ""))
    status, folder = run(file, "--steps=2")
    said = " ".join(capsys.readouterr().out.split())
    assert status == 0 and "no metric ranks them: set best.metric, or --metric=EVALUATOR" in said
    assert "peak seed step state seconds" in said and "None" not in said and "mean" not in said
    assert all(row["test/accuracy"] and not row["value"] for row in rows(folder))
    assert not (folder / "best").is_symlink()


def test_a_first_trial_that_cannot_be_trained_hides_no_other(file: Path) -> None:
    status, folder = run(file, "--over=batch_size=101,64,32", "--task.accumulate=2",
                         "--workers=1", executor="processes")
    assert status == 0
    assert sorted(row["state"] for row in rows(folder)) == ["done", "done", "failed"]


def test_what_memory_does_not_hold_is_split(file: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(study, "memory_of", lambda program: 10 * len(program.trials))
    monkeypatch.setattr(study, "free_memory", lambda devices: 25)
    status, folder = run(file, "--steps=2", executor="vmap")
    assert status == 0 and "so 2 at once" in capsys.readouterr().out
    groups = [e.group for e in Ledger(folder / "ledger.sqlite").trials()]
    assert groups == [0, 0, 1, 1] and len(list((folder / "groups").glob("0*"))) == 2


def test_what_took_more_memory_than_was_said_is_split(
        file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = iter([0, 30, 30, 50, 50, 70])
    monkeypatch.setattr(study, "rates_of", lambda programs: [2., 1.])
    monkeypatch.setattr(study, "free_memory", lambda devices: 25e9)
    monkeypatch.setattr(study.cost, "memory_peak", lambda: next(peaks, 70) * 1e9)
    status, folder = run(file, "--steps=2", executor="auto")
    assert status == 0
    said = capsys.readouterr().out
    assert "4 trials at once took 30.0 GB, of 25.0 that were free" in said
    assert "so 2 at once" in said
    assert [e.group for e in Ledger(folder / "ledger.sqlite").trials()] == [0, 0, 1, 1]


class Fixed(study.Study):
    """A study of given results."""

    def __init__(self, history: dict[int, dict[int, float]], mode: str, **changes: Any) -> None:
        self.history, self.mode = history, mode
        self.sweep = study.Sweep(**changes)
        self.steps = lambda number: 100  # type: ignore[method-assign]


def test_asha_keeps_the_best_at_each_rung() -> None:
    values = {n: {10: float(n)} for n in range(8)}
    fixed = Fixed(values, "max", prune="asha", rung=10, factor=4)
    assert [bool(fixed.prunes(n, 10)) for n in range(8)] == [True] * 6 + [False] * 2
    assert fixed.prunes(0, 10) == "asha: not among the best 2 of 8 at the rung of step 10"
    assert Fixed(values, "min", prune="asha", factor=4).prunes(0, 10) == ""
    values[7] |= {20: -5., 40: 3.}
    values[6] |= {20: 9., 40: 4.}
    assert fixed.prunes(7, 20) == ""  # between two rungs
    assert fixed.prunes(7, 40) and not fixed.prunes(6, 40)
    values[6][100] = 0.
    assert fixed.prunes(6, 100) == ""  # the end is no rung


def test_median_ends_those_below_the_middle() -> None:
    values = {n: {10: float(n), 20: float(n)} for n in range(5)}
    fixed = Fixed(values, "max", prune="median", rung=20)
    assert fixed.prunes(0, 10) == ""
    assert fixed.prunes(0, 20) == "median: 2.5 of 4 others at step 20"
    assert fixed.prunes(4, 20) == "" and fixed.prunes(2, 20) == ""
    values[0][10] = 9.  # its best so far
    assert fixed.prunes(0, 20) == ""


@pytest.mark.parametrize("executor", ["sequential", "vmap"])
def test_what_falls_behind_is_pruned_and_can_be_used(file: Path, executor: str) -> None:
    status, folder = run(
        file, "--over=optimizer.learning_rate.peak=0.3,0.2,0.1,0.01,1e-3,1e-4,1e-5,1e-6",
        "--prune=asha", "--rung=2", "--steps=8", executor=executor)
    assert status == 0
    found = {int(row["trial"]): row for row in rows(folder)}
    states = [found[i]["state"] for i in range(8)]
    assert states.count("pruned") >= 3 and states.count("done") >= 1
    number = states.index("pruned")
    assert "not among the best" in found[number]["reason"]
    assert committed(folder / f"trials/{number:04d}/checkpoints")[-1] < 8


def test_optuna_goes_on_with_the_same_choices(file: Path) -> None:
    pytest.importorskip("optuna", reason="pip install 'jaxdl[sweep]'")
    file.write_text(PLAIN + '''
def sweep():
    return optuna_(14, **{"optimizer.learning_rate.peak": log_uniform(1e-4, 1),
                          "task.model.widths": choice((), (8,)), "seed": integers(0, 3)})
''')
    status, folder = run(file, "--steps=2")
    assert status == 0
    chosen = [e.overrides for e in Ledger(folder / "ledger.sqlite").trials()]
    assert len(chosen) == 14 and len({json.dumps(c) for c in chosen}) == 14
    assert {tuple(c["task.model.widths"]) for c in chosen} == {(), (8,)}
    # As if it had been killed in the midst.
    with sqlite3.connect(folder / "ledger.sqlite") as book:
        book.execute("DELETE FROM trial WHERE number >= 11")
    for number in range(11, 14):
        shutil.rmtree(folder / f"trials/{number:04d}")
    assert run(file, "--steps=2")[0] == 0
    assert [e.overrides for e in Ledger(folder / "ledger.sqlite").trials()] == chosen


def test_clusters_say_what_they_need(file: Path, capfd: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    for executor, extra in (("ray", "ray"), ("slurm", "slurm")):
        said = error(capfd, "sweep", f"--experiment={file}", f"--executor={executor}",
                     f"--workdir={file.parent / 'runs' / executor}")
        assert f"--executor={executor} needs " in said and f"jaxdl[{extra}]" in said


@pytest.mark.parametrize(("executor", "options"), [
    ("ray", []), ("slurm", ["--slurm=cluster=local"]), ("slurm", ["--slurm=cluster=debug"])])
def test_clusters_train_the_same_trials(file: Path, executor: str, options: list[str]) -> None:
    pytest.importorskip("ray" if executor == "ray" else "submitit",
                        reason=f"pip install 'jaxdl[{executor}]'")
    assert run(file)[0] == 0
    (file.parent / "sweep").rename(file.parent / "straight")
    status, folder = run(file, "--workers=2", *options, executor=executor)
    assert status == 0
    for number in range(4):
        name = f"trials/{number:04d}"
        assert logged(folder / name) == logged(file.parent / "straight" / name)
    assert isinstance(Entry(0, {}), Entry) and workers.PRUNE


def test_the_reason_of_a_failed_trial_is_its_line(tmp_path: Path) -> None:
    error = UserError("/data/x.png: cannot be read (Permission denied).")
    error.__cause__ = PermissionError(13, "Permission denied", "/data/x.png")
    assert study.failed(error, tmp_path).reason == str(error)
    assert study.failed(PermissionError(13, "Permission denied", "/data/x.png"),
                        tmp_path).reason.startswith("PermissionError: [Errno 13]")


def test_a_growing_log_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert study.whole_lines(log, 0) == 0
    log.write_text('{"step": 1, "a": 2.0}\n{"step": 2')
    first = study.whole_lines(log, 0)
    assert first == len('{"step": 1, "a": 2.0}\n') and study.whole_lines(log, first) == first
    log.write_text(log.read_text() + ', "a": 3.0}\n')
    assert list(study.logged(tmp_path, first)) == [(2, {"a": 3.0})]
    assert study.whole_lines(log, first) == log.stat().st_size
    log.write_text('{"step": 1, "a": 2.0}\n')  # begun again
    assert study.whole_lines(log, 100) == first
