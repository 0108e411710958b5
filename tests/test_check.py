"""Each check finds the bug that it is meant for, and is silent where there is none. All checks of
all plants together take minutes: `benchmarks/check.py`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import api, check, cli, config
from jaxdl.checks import subject as subjects
from jaxdl.checks.subject import NO_LOSS, Finding, Subject
from jaxdl.checks.training import learning_rate_range
from jaxdl.data.digits import Digits
from jaxdl.data.poisson import Poisson
from jaxdl.data.source import Arrays, Records, Source, permutation
from jaxdl.data.tabular import Table
from jaxdl.data.transforms import Binarise
from jaxdl.models.mixer import Mixer
from jaxdl.models.mlp import MLP
from jaxdl.tasks.adversarial import AdversarialTraining, Attack
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.fairness import TabularClassification
from jaxdl.tasks.lora import LoRA
from jaxdl.tasks.multi_task import MultiTask
from tests import plants


@pytest.mark.parametrize("name", plants.PLANTS)
def test_a_planted_bug_is_found_by_its_check(name: str) -> None:
    plant = plants.PLANTS[name]
    found = dict(verdicts(plant.experiment(), plant.checks))
    assert found == dict.fromkeys(plant.checks, "FAIL"), name


def verdicts(experiment: Any, only: Any = ()) -> Any:
    for name, finding, _ in check.examine(experiment, only=only):
        yield name, finding.verdict


def test_what_is_healthy_passes_all_checks() -> None:
    found = dict(verdicts(plants.digits()))
    assert set(found.values()) <= {"pass", "-"}, found
    assert [n for n, verdict in found.items() if verdict == "-"] == ["causal_leak"]


@pytest.mark.parametrize("name", ["convolutions", "text"])
def test_what_is_healthy_passes_the_exact_checks(name: str) -> None:
    found = dict(verdicts(plants.HEALTHY[name](), ("leakage", "masks", "example_leak",
                                                   "causal_leak", "modes")))
    assert set(found.values()) <= {"pass", "-"}, found
    assert found["causal_leak"] == ("pass" if name == "text" else "-")


def test_stochastic_depth_is_known_as_a_regulariser() -> None:
    """It is turned off where a batch is learned by heart, and explains what training draws."""
    mixer = Mixer(patch=4, width=8, tokens=4, layers=2, classes=10, stochastic_depth=0.3)
    experiment = plants.digits(task=Classification(model=mixer))
    assert Subject(experiment).quiet.task.model.stochastic_depth == 0  # type: ignore[attr-defined]
    assert dict(verdicts(experiment, ("modes",))) == {"modes": "pass"}


def test_a_task_has_checks_of_its_own_and_names_those_that_do_not_apply(
        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Own(plants.Wrong):
        not_applicable = {"labels": "they are drawn at random"}

        def checks(self) -> dict[str, Any]:
            def whole(subject: Subject) -> Finding:
                """Images have eight rows."""
                rows = subject.batch(subject.train)["image"].shape[1]
                return Finding("pass" if rows == 8 else "FAIL", f"{rows} rows", "8")

            def raises(subject: Subject) -> Finding:
                """Cannot be carried out."""
                return Finding("pass", str(jnp.zeros(3).reshape(2)))

            return {"whole": whole, "raises": raises}

    experiment = plants.digits(task=Own(model=MLP(widths=())))
    found = {name: finding for name, finding, _ in check.examine(
        experiment, only=("labels", "whole", "raises"))}
    assert found["labels"] == Finding("-", look_at="they are drawn at random")
    assert found["whole"] == Finding("pass", "8 rows", "8")
    assert found["raises"].verdict == "FAIL"
    assert "TypeError: cannot reshape" in found["raises"].measured
    assert "test_check.py:" in found["raises"].look_at


def test_what_has_no_loss_is_checked_for_the_rest() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare:
        """The three functions of a task, and nothing else."""

        inner: Any = Classification(model=MLP(widths=()))

        def init(self, *a: Any) -> Any:
            return self.inner.init(*a)

        def step(self, *a: Any) -> Any:
            return self.inner.step(*a)

        def evaluate(self, *a: Any) -> Any:
            return self.inner.evaluate(*a)

    found = {name: finding for name, finding, _ in check.examine(plants.digits(
        task=Bare()), Subject(plants.digits(task=Bare()), steps=20))}  # type: ignore[arg-type]
    verdicts = {name: finding.verdict for name, finding in found.items()}
    assert [n for n, v in verdicts.items() if v == "pass"] == [
        "inputs", "labels", "duplicates", "leakage", "order", "masks", "evaluation", "updates",
        "compiles_once"]
    assert {f.look_at for n, f in found.items() if verdicts[n] == "-"} == {
        NO_LOSS, "the task does not say that it is causal"}
    assert set(verdicts.values()) == {"pass", "-"}


def test_what_a_transform_says_that_it_draws_may_be_drawn_in_an_evaluation() -> None:
    class Undeclared(Binarise):
        draws = ()

    for transform, verdict in ((Binarise(), "pass"), (Undeclared(), "FAIL")):
        data = Digits(size=8, channels=1, mean=(0.,), std=(1.,), evaluation=(transform,))
        found = dict(verdicts(plants.digits(data=data), ("evaluation",)))
        assert found == {"evaluation": verdict}


def test_of_data_on_disk_examples_from_all_of_it_are_looked_at(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose files are often in the order of their classes."""
    class OnDisk(plants.Digits):
        def open(self, split: str) -> Source:
            arrays: Any = super().open(split)
            order = np.argsort(arrays.arrays["label"], kind="stable")
            return Records(examples=[{k: x[i] for k, x in arrays.arrays.items()} for i in order],
                           transforms=arrays.transforms)

    monkeypatch.setattr(subjects, "TRAIN", 60)
    experiment = plants.digits(data=OnDisk(size=8, channels=1))
    found = Subject(experiment, steps=5).train.arrays
    assert found is not None and len(found["label"]) == 60
    assert np.unique(found["label"]).tolist() == list(range(10))


def test_long_steps_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an MLP 300; of one whose step takes more than 1e9 operations, 6 a weight and example,
    100; and where a step cannot be traced, the checks say why."""
    class Broken(Classification):
        def loss(self, *arguments: Any, **options: Any) -> Any:
            raise ValueError("the loss is broken")

    experiment = plants.digits()
    wide = config.replace(experiment, {"task.model.widths": (2_048, 2_048)})
    assert Subject(experiment).experiment.steps == 300
    assert Subject(wide, batch_size=32).experiment.steps == 300
    assert Subject(wide, batch_size=64).experiment.steps == 100
    monkeypatch.setattr("jaxdl.checks.subject.LONG", 1e9)
    sizes = [Subject(wide, batch_size=n).experiment.batch_size for n in (None, 64)]
    assert sizes == [32, 64]
    wider = config.replace(experiment, {"task.model.widths": (4_096, 4_096)})
    assert Subject(wider).experiment.batch_size == 32 * 10 // 33  # 17 million weights: 3.3e9
    broken = config.replace(experiment, {"task": Broken(model=experiment.task.model)})
    found = {n: f for n, f, _ in check.examine(broken, only=("order", "gradients"))}
    assert found["order"].verdict == "pass"
    assert found["gradients"].verdict == "FAIL"
    assert found["gradients"].measured.startswith("raised ValueError: the loss is broken")


def test_an_epoch_of_whole_batches() -> None:
    """1,438 digits are two batches of 719."""
    experiment = config.replace(plants.digits(), {"batch_size": 719})
    found = {n: f for n, f, _ in check.examine(experiment, only=("order",))}
    assert (found["order"].verdict, found["order"].measured) == (
        "pass", "1,438 examples, each once")


@pytest.mark.parametrize(("overlap", "verdict"), [(None, "FAIL"), (20, "FAIL"), (40, "warn")])
def test_repetitions_are_a_fault_unless_the_source_owns_to_them(
        monkeypatch: pytest.MonkeyPatch, overlap: int | None, verdict: str) -> None:
    """The first example of the epoch, again in place of one of 48: 30 of 1,438."""
    index = Arrays.index

    def repeated(self: Arrays, seed: int, position: int, batch_size: int) -> np.ndarray:
        ids = index(self, seed, position, batch_size).copy()
        ids[(position + np.arange(len(ids))) % 48 == 5] = index(self, seed, 0, 1)
        return ids

    monkeypatch.setattr(Arrays, "index", repeated)
    if overlap is not None:
        monkeypatch.setattr(Arrays, "overlap", lambda self, batch_size: overlap, raising=False)
    found = {n: f for n, f, _ in check.examine(plants.digits(), only=("order",))}["order"]
    assert found.verdict == verdict
    assert found.measured.endswith("of 1,438 examples of an epoch are repetitions")


def test_a_model_may_say_that_a_check_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = plants.digits()
    monkeypatch.setattr(type(experiment.task.model), "not_applicable",
                        {"order": "no reason"}, raising=False)
    found = {n: f for n, f, _ in check.examine(experiment, only=("order",))}
    assert (found["order"].verdict, found["order"].look_at) == ("-", "no reason")


def test_rows_of_a_table_agree_by_chance_and_leak_beyond_it(tmp_path: Path) -> None:
    """Of 500 people of 40 kinds, whose labels differ by chance, each has an equal in training;
    where hardly one has, a tenth of the test there is a leak."""
    draw = np.random.default_rng(0)

    def found(kinds: np.ndarray) -> dict[str, Finding]:
        path = tmp_path / f"{len(np.unique(kinds))}.csv"
        path.write_text("x,y\n" + "".join(f"{kind},{label}\n" for kind, label in zip(
            kinds, draw.integers(0, 2, len(kinds)), strict=True)))
        data = Table(path=str(path), numeric=("x",), label="y", labels=("0", "1"))
        experiment = plants.digits(data=data, task=TabularClassification(
            model=MLP(widths=(8,), classes=2)))
        return {n: f for n, f, _ in check.examine(experiment, only=("duplicates", "leakage"))}

    chance = found(draw.integers(0, 40, 500))
    assert [f.verdict for f in chance.values()] == ["warn", "warn"]
    assert "% of train have an equal there" in chance["leakage"].measured
    kinds = np.arange(500)
    test = permutation(0, 0, 500)[:100]
    kinds[test[:10]] = kinds[permutation(0, 0, 500)[100:110]]
    leak = found(kinds)
    assert [f.verdict for f in leak.values()] == ["pass", "FAIL"]
    assert leak["leakage"].measured.startswith("10 of 100 of test are in train")


def test_the_data_may_say_that_a_check_does_not_apply() -> None:
    experiment = plants.digits(data=Poisson(data=Digits(size=8, channels=1), expected=16))
    found = {n: f for n, f, _ in check.examine(experiment, only=("order",))}
    assert (found["order"].verdict, found["order"].look_at) == (
        "-", "each batch is drawn anew, there are no epochs")


def test_micro_batches_of_a_loss_that_draws_are_not_compared() -> None:
    """Nor asked for where what is random can be turned off; a task inside has its say, too."""
    plain: Any = plants.digits(MLP(widths=(16,), dropout=0.5)).task
    task = AdversarialTraining(task=plain, attack=Attack(steps=1, random=False))
    for random, verdict in ((False, "pass"), (True, "-")):
        experiment = plants.digits(task=SWA(start=5, task=replace(task, attack=replace(
            task.attack, random=random))))
        found = {n: f for n, f, _ in check.examine(experiment, Subject(experiment, steps=5), only=(
            "accumulation", "modes"))}
        assert found["accumulation"].verdict == verdict, found
        assert found["modes"].look_at == "images are attacked in training alone"


def test_what_starts_from_a_run_is_checked_with_its_parameters(tmp_path: Path) -> None:
    assert cli.main(["--experiment=mlp_digits", "--steps=2", f"--workdir={tmp_path}/run"]) == 0
    experiment, state = api.state(tmp_path / "run")
    one = config.replace(experiment, {"init_from.path": f"{tmp_path}/run"})
    subject = Subject(one, steps=4)
    chex.assert_trees_all_equal(subject.fresh.params, state.params)
    states: list[Any] = []
    subject.trained(steps=1, program=subject.with_rate(0.), watch=lambda step, carry: states.append(
        jax.device_get(carry.state.params)))
    chex.assert_trees_all_equal(states[0], jax.device_get(state.params))
    found = {n: f for n, f, _ in check.examine(one, subject, only=("capacity",
                                                                   "learning_rate_range"))}
    assert {n: f.verdict == "-" for n, f in found.items()} == {"capacity": True,
                                                               "learning_rate_range": False}
    none = config.replace(experiment, {"init_from.path": "no/run"})
    (_, finding, _), = check.examine(none, only=("gradients",))
    assert finding.verdict == "FAIL" and "there is no such run or file" in finding.measured


def test_the_layers_that_adapters_are_for_are_no_fields() -> None:
    """LoRA's `targets` are regexes of kernels."""
    plain: Any = plants.digits(MLP(widths=(16,))).task
    subject = Subject(plants.digits(task=LoRA(task=plain, targets=("dense1/kernel",))))
    assert (subject.targets, subject.inputs) == (("label",), ("image",))


def test_tasks_that_share_a_trunk_grow_together() -> None:
    one: Any = plants.digits(MLP(widths=(16,))).task
    experiment = plants.digits(task=MultiTask(
        tasks={"a": one, "b": one}, shared=("dense.*",), balance="uncertainty"))
    found = {n: f for n, f, _ in check.examine(experiment, Subject(experiment, steps=10), only=(
        "labels", "modes", "capacity"))}
    assert {n: f.verdict for n, f in found.items()} == {
        "labels": "pass", "modes": "-", "capacity": "pass"}
    assert "tasks.a.model.widths=(16,) (1,382 parameters)" in found["capacity"].measured


def test_the_rate_rises_whatever_the_schedule_does_with_it() -> None:
    experiment = plants.digits(MLP(widths=()))  # cosine, after a warm-up
    subject = Subject(experiment, steps=30)
    assert learning_rate_range(subject).verdict != "FAIL"
    _, rates, _ = subject.curves["learning_rate_range"]
    ratios = np.diff(np.log(rates))
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
    assert rates[0] == pytest.approx(3e-6, rel=1e-3)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LONG", -1)
    assert cli.main(["check", "--experiment=mlp_digits", "--only=inputs,order,initial_loss",
                     f"--workdir={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert [line.rsplit(" ", 2)[0] for line in err.splitlines() if " of 3: " in line] == [
        "1 of 3: inputs pass,", "2 of 3: order pass,", "3 of 3: initial_loss pass,"]
    assert "3 passed, 0 to look at, 0 failed, 0 do not apply" in out
    page = (tmp_path / "check.html").read_text()
    assert page.count("data:image/png;base64,") >= 32 and "forgotten division by 255" in page

    file = tmp_path / "own.py"
    file.write_text("from tests.plants import PLANTS\n"
                    "def config(): return PLANTS['forgotten normalisation'].experiment()\n")
    assert cli.main(["check", f"--experiment={file}", "--only=inputs",
                     f"--workdir={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "0 passed, 0 to look at, 1 failed" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--only=inptus"], "--only=inptus: no such check; there are inputs, labels, duplicates, "
     "leakage, order, "),
    (["--only=overfits", "--fast"], "--only=overfits: no such check (it trains, and --fast leaves "
     "it out); there are inputs, "),
])
def test_a_check_that_is_not_there(capsys: pytest.CaptureFixture[str], arguments: list[str],
                                   message: str) -> None:
    assert cli.main(["check", "--experiment=mlp_digits", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1
