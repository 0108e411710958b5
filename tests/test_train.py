"""The loop: it resumes to the bit, never waits for the device, compiles once, leaves cleanly."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import checkpoint, clock, config, record, train
from jaxdl.checkpoint import committed
from jaxdl.errors import RunError, UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, InitFrom
from jaxdl.init_from import parameters
from jaxdl.optimizer import SGD, Constant
from jaxdl.process import Preempted
from jaxdl.resume import metrics
from jaxdl.task import Aux, Mean
from jaxdl.tasks.classification import Classification
from tests.tiny import shorter

TESTS = Path(__file__).parent


def run_of(folder: Path, experiment: Experiment, **options: Any) -> record.Run:
    recorded = record.Recorded("tiny", config.to_json(experiment), None, None, "")
    return record.Run(folder, recorded, overrides={}, modules=["tests.tiny", __name__], **options)


def fit(folder: Path, experiment: Experiment, **options: Any) -> train.Progress:
    return train.fit(experiment, run_of(folder, experiment, **options))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, as bytes can tell them apart."""
    folder = folder / "checkpoints"
    return checkpoint.arrays(folder, committed(folder)[-1])


def launch(folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "launch.py", f"--experiment={TESTS / 'tiny.py'}", f"--workdir={folder}"],
        cwd=TESTS.parent, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_killed_in_three_epochs_and_continued_it_is_the_same_run(tmp_path: Path) -> None:
    """SIGKILL in the first, second and third epoch; parameters, statistics, average, keys,
    positions and metrics equal those of the uninterrupted run to the bit."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert launch(straight).wait() == 0
    epoch = 1438
    for example in (epoch - 500, 2 * epoch - 300, 2 * epoch + 900):
        process = launch(killed, JAXDL_TEST_KILL=str(example))
        assert process.wait() == -signal.SIGKILL
    process = launch(killed)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "continuing" in out
    a, b = arrays(straight), arrays(killed)
    assert {"state/ema/head/kernel", "state/mutable/batch_stats/norm1/mean", "state/key",
            "state/opt_state/1/mu/head/kernel", "state/seen", "window/means/loss/total"} <= set(a)
    assert a["state/seen"] == 40 * 128
    assert a.keys() == b.keys()
    assert [p for p in a if a[p].tobytes() != b[p].tobytes()] == []
    assert metrics(straight) == metrics(killed)
    assert [line["step"] for line in metrics(straight) if "test/loss" in line] == [
        8, 16, 24, 32, 40]


def test_a_torn_or_later_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    experiment = shorter(steps=20)
    fit(tmp_path / "a", experiment)
    fit(tmp_path / "b", experiment)
    log = tmp_path / "b" / "metrics.jsonl"
    whole = metrics(tmp_path / "a")
    with log.open("a") as file:
        file.write('{"step": 21, "train/loss": 7.0}\n{"step": 22, "tra')
    fit(tmp_path / "b", shorter(steps=30), accept_changes=True)
    assert [line for line in metrics(tmp_path / "b") if line["step"] <= 20] == whole
    assert metrics(tmp_path / "b")[-1]["step"] == 30
    assert not any(line.get("train/loss") == 7.0 for line in metrics(tmp_path / "b"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signalled(Evaluate):
    number: int = 0

    def __call__(self, task: Any, state: Any, context: Any) -> dict[str, float]:
        os.kill(os.getpid(), self.number)
        return {"x": 0.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_within_a_step(tmp_path: Path, number: signal.Signals) -> None:
    old = signal.getsignal(number)
    experiment = shorter(evals={"test": Evaluate(every=8),
                                "stop": Signalled(every=11, number=int(number))})
    with pytest.raises(Preempted, match=rf"{number.name}: saved step 11; continue with --workdir="):
        fit(tmp_path, experiment)
    assert committed(tmp_path / "checkpoints")[-1] == 11
    assert signal.getsignal(number) is old
    experiment = shorter()
    fit(tmp_path / "straight", experiment)
    fit(tmp_path, experiment, accept_changes=True)
    a, b = arrays(tmp_path / "straight"), arrays(tmp_path)
    assert [p for p in a if a[p].tobytes() != b[p].tobytes()] == []


def test_the_command_exits_with_75_when_terminated(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "launch.py", f"--experiment={TESTS / 'tiny.py'}", "--steps=2000000",
         f"--workdir={tmp_path / 'run'}"], cwd=TESTS.parent, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    log = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.stat().st_size > 500:
            break
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.startswith("SIGTERM: saved step ") and err.count("\n") == 1


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(tmp_path, shorter(steps=10))
    log = (tmp_path / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert fit(tmp_path, shorter(steps=10)) == first
    assert f"{tmp_path} is finished (step 10)." in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "metrics.jsonl").read_text() == log




class HostReads:
    """Counts, while open, how often the host reads an array of jax."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "HostReads":
        cls = type(jnp.zeros(1))
        self._old = {name: getattr(cls, name) for name in (
            "__array__", "__float__", "__int__", "__bool__", "__index__", "item", "tolist",
            "block_until_ready") if hasattr(cls, name)}
        for name, method in self._old.items():
            setattr(cls, name, self._counted(method))
        self._get, self._block = jax.device_get, jax.block_until_ready
        self._asarray, self._array = np.asarray, np.array  # They read without asking __array__.
        np.asarray, np.array = map(self._counted_if_jax, (self._asarray, self._array))
        jax.device_get = self._counted(self._get)
        jax.block_until_ready = self._counted(self._block)
        return self

    def _counted(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)
        return call

    def _counted_if_jax(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += isinstance(args[0] if args else None, jax.Array)
            return function(*args, **kwargs)
        return call

    def __exit__(self, *error: object) -> None:
        np.asarray, np.array = self._asarray, self._array
        cls = type(jnp.zeros(1))
        for name, method in self._old.items():
            setattr(cls, name, method)
        jax.device_get, jax.block_until_ready = self._get, self._block


@pytest.mark.parametrize("fused", [1, 20])
@pytest.mark.parametrize("planted", ["", "float", "asarray", "get"])
def test_the_loop_does_not_read_from_the_device_at_every_step(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str, fused: int) -> None:
    """100 steps with log_every=50; a float(loss) planted in the loop is found."""
    reads = HostReads()
    counted: list[int] = []
    waiting, advance = train.Clock.waiting, train.Program.advance

    def dispatch_begins(clock: train.Clock, steps: int) -> Any:
        counted.append(reads.count)
        return waiting(clock, steps)

    def advance_and_read(program: train.Program, carry: Any, batches: Any) -> Any:
        carry = advance(program, carry, batches)
        loss = carry.window.means["loss"].total
        {"float": float, "asarray": np.asarray, "get": jax.device_get}[planted](loss)
        return carry

    if planted:
        monkeypatch.setattr(train.Program, "advance", advance_and_read)
    monkeypatch.setattr(train.Clock, "waiting", dispatch_begins)
    monkeypatch.setattr(train, "FUSED", fused)
    monkeypatch.setattr(clock, "AHEAD", 1e9)  # however slow the machine is
    with reads:
        fit(tmp_path, shorter(steps=100, log_every=50, save_every=1000, evals={}, best=Best()))
    assert len(counted) == {1: 100, 20: 6}[fused]
    in_loop = counted[-1] - counted[0]
    if planted:
        assert in_loop >= len(counted) - 1
    else:
        assert in_loop == 2, "the first step is awaited, to know its length; one bulk read"


@pytest.mark.parametrize(("seconds", "fused", "waits"), [
    (5.0, 1, range(1, 2001)),             # longer than it may be behind: awaited one by one
    (0.5, 1, [1, *range(5, 2001, 4)]),
    (1 / 128, 1, range(1, 2001, 256)),
    (1 / 128, 100, range(100, 2001, 300)),
    (1e-6, 100, [100]),
])
def test_the_host_is_not_long_ahead_of_the_device(monkeypatch: pytest.MonkeyPatch, seconds: float,
                                                  fused: int, waits: Any) -> None:
    """What is dispatched and not yet computed takes two seconds at most, whatever a step takes."""
    now, computed, waited = 0.0, 0, []
    watch = clock.Clock()

    def wait(dispatched: int) -> None:
        nonlocal now, computed
        now += (dispatched - computed) * seconds
        computed = dispatched
        waited.append(dispatched)

    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    monkeypatch.setattr(clock.jax, "block_until_ready", wait)
    watch.start()
    for step in range(fused, 2001, fused):
        watch.follow(step, fused)
    assert waited == list(waits)


def test_what_a_save_waited_for_does_not_count_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of half a second, of which a save in between awaits three."""
    now, computed, waited = 0.0, 0, []
    watch = clock.Clock()

    def wait(dispatched: int) -> None:
        nonlocal now, computed
        now += (dispatched - computed) * 0.5
        computed = dispatched
        waited.append(dispatched)

    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    monkeypatch.setattr(clock.jax, "block_until_ready", wait)
    watch.start()
    for step in range(1, 21):
        watch.follow(step, 1)
        if step == 4:
            with watch.paused("save", 4):
                wait(step)
    assert waited == [1, 4, 8, 12, 16, 20]


def test_fused_steps_are_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However steps are grouped, the run is the same to the bit; one by one to rounding."""
    fit(tmp_path / "a", shorter(log_every=3))
    fit(tmp_path / "b", shorter(log_every=40))
    a, b = arrays(tmp_path / "a"), arrays(tmp_path / "b")
    assert [p for p in a if p.startswith("state/") and a[p].tobytes() != b[p].tobytes()] == []
    monkeypatch.setattr(train, "FUSED", 1)
    fit(tmp_path / "c", shorter(log_every=3, steps=4))
    monkeypatch.undo()
    fit(tmp_path / "d", shorter(log_every=3, steps=4))
    c, d = arrays(tmp_path / "c"), arrays(tmp_path / "d")
    for path in c:
        np.testing.assert_allclose(c[path], d[path], rtol=2e-3, atol=2e-4, err_msg=path)


@pytest.mark.parametrize(("widths", "batch", "fused"), [((32,), 128, 3), ((4096, 4096), 512, 1)])
def test_only_short_steps_are_fused(widths: tuple[int, ...], batch: int, fused: int) -> None:
    from jaxdl import parallel

    experiment: Any = config.replace(shorter(), {"task.model.widths": widths, "batch_size": batch})
    source = experiment.data.open("train")
    program = train.Program(experiment, source, parallel.arrange(experiment.mesh))
    assert program.fused == fused


def test_no_convolution_is_put_into_a_loop_on_cpu() -> None:
    from jaxdl import parallel
    from jaxdl.models.cnn import CNN

    experiment = shorter(task=Classification(model=CNN(channels=(2,), dense=())))
    source = experiment.data.open("train")
    assert train.Program(experiment, source, parallel.arrange(experiment.mesh)).fused == 1


def test_the_step_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.Program, "_step", chex.assert_max_traces(train.Program._step, 1))
    chex.clear_trace_counter()
    fit(tmp_path, shorter(steps=25))


def test_another_learning_rate_is_the_same_program(tmp_path: Path) -> None:
    """Floats are arguments: the compiled step does not change with them."""
    from jaxdl import parallel

    def text(experiment: Experiment) -> str:
        devices = parallel.arrange(experiment.mesh)
        program = train.Program(experiment, experiment.data.open("train"), devices)
        return program.lowered().as_text()

    base = shorter()
    other = config.replace(base, {"optimizer.learning_rate.peak": 0.5, "task.model.dropout": 0.5,
                                  "optimizer.clip": 3.0, "task.ema": 0.5, "seed": 7})
    assert text(base) == text(other)
    assert text(base) != text(config.replace(base, {"task.model.widths": (16,)}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exploding(Classification):
    """Its loss is infinite at one step."""

    at: int = 13

    def step(self, state: Any, batch: Any, tx: Any) -> Any:
        new, found = super().step(state, batch, tx)
        loss: Any = found["loss"]
        bad = jnp.where(state.step == self.at, jnp.inf, 0.0)
        params = jax.tree.map(lambda x: x + bad, new.params)
        return (dataclasses.replace(new, params=params),
                {**found, "loss": Mean(loss.total + bad, loss.count)})


def exploding(**changes: Any) -> Experiment:
    task: Any = shorter().task
    fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    return shorter(task=Exploding(**fields), **changes)


def test_a_step_that_is_not_finite_ends_the_run_and_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=(
            r"step 13: loss is not finite\. It began in what comes after the gradient: select_n of "
            r".*tests/test_train\.py:.* The newest checkpoint is of step 10\. A lower learning "
            r"rate")):
        fit(tmp_path, exploding())
    assert committed(tmp_path / "checkpoints")[-1] == 10
    assert all(np.isfinite(x).all() for x in arrays(tmp_path).values())
    # With another setting it goes on from there.
    task: Any = exploding().task
    fit(tmp_path, dataclasses.replace(exploding(), task=dataclasses.replace(task, at=99)),
        accept_changes=True)
    assert committed(tmp_path / "checkpoints")[-1] == 40


def test_a_signal_after_a_bad_step_is_told_as_a_bad_step(tmp_path: Path) -> None:
    experiment = exploding(log_every=20, evals={
        "stop": Signalled(every=16, number=int(signal.SIGTERM))})
    with pytest.raises(RunError, match=r"step 13: loss is not finite"):
        fit(tmp_path, dataclasses.replace(experiment, best=Best(), save_every=100))


def test_a_signal_in_the_last_evaluation_leaves_one_line(tmp_path: Path) -> None:
    """What is evaluated at a step that is saved already is remembered there."""
    experiment = shorter(steps=16, best=Best())

    class Interrupted(Evaluate):
        def __call__(self, task: Any, state: Any, context: Any) -> dict[str, float]:
            if not (tmp_path / "once").exists() and context.step == 16:
                (tmp_path / "once").touch()
                raise Preempted("SIGTERM")
            return {"x": 1.0}

    experiment = dataclasses.replace(experiment, evals={"test": Interrupted(every=8)})
    run = tmp_path / "run"
    with pytest.raises(Preempted):
        fit(run, experiment)
    for _ in range(3):
        fit(run, experiment)
    assert [x["step"] for x in metrics(run) if "test/x" in x] == [8, 16]


def test_a_label_that_the_model_has_no_class_for_ends_the_run(tmp_path: Path) -> None:
    experiment = config.replace(shorter(), {"task.model.classes": 9})
    with pytest.raises(RunError, match=r"step 0: loss, grad_norm are not finite"):
        fit(tmp_path, experiment)


def test_a_refused_resume_changes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, shorter(steps=8))
    before = (tmp_path / "config.json").read_bytes()
    wider = config.replace(shorter(steps=8), {"task.model.widths": (33,)})
    with pytest.raises(UserError, match="not a checkpoint of this experiment"):
        fit(tmp_path, wider, accept_changes=True)
    assert (tmp_path / "config.json").read_bytes() == before
    assert train.evaluate(shorter(steps=8), tmp_path)[0] == 8


def test_a_full_disk_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """The log cannot grow beyond a limit; the process must end, not wait for a writer that died."""
    command = (f"ulimit -f 64; exec {sys.executable} launch.py --experiment={TESTS / 'tiny.py'} "
               f"--steps=4000 --log_every=1 --save_every=100000 --workdir={tmp_path / 'run'} "
               "--evals.test.every=100000")
    done = subprocess.run(["bash", "-c", command], cwd=TESTS.parent, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""})
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        f"error: {tmp_path / 'run'}: File too large; what is committed in "
        f"{tmp_path / 'run' / 'checkpoints'} is intact.")
    assert "Traceback" not in done.stdout


def test_skipping_drops_one_update(tmp_path: Path) -> None:
    fit(tmp_path, exploding(nonfinite="skip"))
    lines = metrics(tmp_path)
    assert sum(line.get("train/skipped", 0) for line in lines) == 1
    assert all(np.isfinite(x).all() for x in arrays(tmp_path).values())
    assert arrays(tmp_path)["state/step"] == 40


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    class Scripted(Evaluate):
        def __call__(self, task: Any, state: Any, context: Any) -> dict[str, float]:
            scores = {4: .3, 8: .5, 12: float("nan"), 16: .4, 20: .45}
            return {"score": scores.get(context.step, 0.)}

    experiment = shorter(evals={"eval": Scripted(every=4)}, keep=1,
                         best=Best(metric="eval/score", patience=3))
    progress = fit(tmp_path, experiment)
    assert (progress.best, progress.best_step, progress.stopped) == (.5, 8, True)
    assert committed(tmp_path / "checkpoints") == [8, 20]
    assert parameters(tmp_path, "best")[0] == 8 and parameters(tmp_path, "last")[0] == 20
    with pytest.raises(UserError, match=r"has no checkpoint '9'; it has 8, 20, 'last' and 'best'"):
        parameters(tmp_path, "9")


def test_evaluate_prints_what_fit_printed(tmp_path: Path) -> None:
    progress = fit(tmp_path, shorter(steps=16, keep=9))
    step, results = train.evaluate(shorter(steps=16), tmp_path, "last")
    assert (step, results) == (16, progress.results)
    step, results = train.evaluate(shorter(steps=16), tmp_path, "8")
    logged = next(line for line in metrics(tmp_path) if line["step"] == 8 and "test/loss" in line)
    assert results == {k: v for k, v in logged.items() if k != "step"}


def test_validation_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best.metric=tets/accuracy: .* one of evals: test. Did "
                                        r"you mean 'test'\?"):
        fit(tmp_path / "a", shorter(best=Best(metric="tets/accuracy")))
    with pytest.raises(UserError, match=r"best.metric=test/acuracy: .*mean 'test/accuracy'"):
        fit(tmp_path / "b", shorter(best=Best(metric="test/acuracy"), steps=8))
    with pytest.raises(UserError, match=r"a run counts at most 4,294,967,295"):
        fit(tmp_path / "c", shorter(steps=1 << 30))


def test_starting_from_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "old", shorter(steps=10))
    old = arrays(tmp_path / "old")
    init = InitFrom(path=str(tmp_path / "old"), fresh=("params/head/.*",))
    init = dataclasses.replace(init, path=os.path.relpath(tmp_path / "old"))
    frozen: Any = config.replace(shorter(steps=1, init_from=init, evals={}, best=Best()),
                                 {"task.freeze": ("dense1/.*", "norm1/.*")})
    fit(tmp_path / "new", frozen)
    out = capsys.readouterr().out
    assert [x for x in out.splitlines() if x.startswith("started from")] == [
        f"started from step 10 of {init.path}: 5 arrays taken, 2 fresh, 2 unused"]
    new = arrays(tmp_path / "new")
    np.testing.assert_array_equal(new["state/frozen/dense1/kernel"],
                                  old["state/ema/dense1/kernel"])
    assert not np.array_equal(new["state/params/head/kernel"], old["state/ema/head/kernel"])
    wider = config.replace(frozen, {"task.model.widths": (33,)})
    with pytest.raises(UserError, match=r"init_from: params/dense1/kernel is \[64, 32\] in .*, and "
                                        r"\[64, 33\] here"):
        fit(tmp_path / "x", wider)
    renamed = config.replace(frozen, {"init_from.rename": (("dense1", "densest"),)})
    with pytest.raises(UserError, match=r"params/dense1/kernel is not in step 10 of .* Did you "
                                        r"mean 'params/densest/kernel'\? \(1 missing in all\)"):
        fit(tmp_path / "y", renamed)


def test_a_float_asked_a_question_is_compiled_for_its_value(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Asking(Classification):
        weight: float = 0.5

        def loss(self, variables: Any, batch: Any, key: Any, *, train: bool) -> tuple[Mean, Aux]:
            mean, aux = super().loss(variables, batch, key, train=train)
            if self.weight > 0.1:
                mean = Mean(mean.total * self.weight, mean.count)
            return mean, aux

    task = Asking(model=shorter().task.model)  # type: ignore[attr-defined]
    fit(tmp_path, shorter(task=task, steps=2, evals={}, best=Best(),
                          optimizer=SGD(learning_rate=Constant(peak=0.1))))
    assert "note: task.weight is asked a question" in capsys.readouterr().out


def test_data_that_fails_midway_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    from jaxdl.data.source import Arrays

    class Failing(Arrays):
        def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
            if position >= 7 * batch_size:
                raise UserError("file x.png: truncated.")
            return super().index(seed, position, batch_size)

    experiment = shorter()

    class Broken(type(experiment.data)):  # type: ignore[misc]
        def open(self, split: str) -> Any:
            source: Any = super().open(split)
            return Failing(arrays=source.arrays, transforms=source.transforms)

    data = Broken(**{f.name: getattr(experiment.data, f.name)
                     for f in dataclasses.fields(experiment.data)})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^file x.png: truncated\.$"):
        fit(tmp_path, dataclasses.replace(experiment, data=data))
    assert committed(tmp_path / "checkpoints")[-1] == 6  # steps 7 to 9 are one dispatch


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(TESTS.parent)
    yield
