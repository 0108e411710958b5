"""The command line: typed leaves, help, and errors of one line."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdl import cli
from tests.test_train import fit
from tests.tiny import shorter

ROOT = Path(__file__).parent.parent
TINY = f"--experiment={ROOT / 'tests' / 'tiny.py'}"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def error(capfd: Captured, *arguments: str, status: int = 2) -> str:
    """The one line of an error; nothing else is printed."""
    assert cli.main(list(arguments)) == status
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err.removeprefix("error: ").strip()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--task.model.widhts=3"], "--task.model.widhts: no such field. Did you mean "
     "--task.model.widths?"),
    (["--peak=3"], "--peak: no such field. Did you mean --optimizer.learning_rate.peak?"),
    (["--optimizer=3"], "--optimizer: names a whole Adam; set what is in it: --optimizer."),
    (["--task.freeze=head/["], "--task.freeze=('head/[',): expected tuple of str, a regular "
     "expression."),
    (["--seed=4294967296"], "--seed=4294967296: expected int, between 0 and 4.29497e+09."),
    (["--evals.test.split=tset"], "MortalDigits: no split 'tset'"),
    (["--sinks=wadnb"], "--sinks=wadnb: expected tuple of 'tensorboard' or 'wandb' or 'mlflow'. "
     "Did you mean 'wandb'?"),
    (["--steps=1.5"], "--steps=1.5: expected int, at least 1."),
    (["--steps=-1"], "--steps=-1: expected int, at least 1."),
    (["--steps"], "--steps=: expected int, at least 1."),
    (["--steps", "3", "4"], "--steps=3 4: expected int, at least 1."),
    (["--task.model.dropout=1.5"], "--task.model.dropout=1.5: expected float, between 0 and 1 or "
     "None."),
    (["--task.model.dropout=lots"], "--task.model.dropout=lots: expected float, between 0 and 1 or "
     "None."),
    (["--optimizer.clip=nan"], "--optimizer.clip=nan: expected a finite number."),
    (["--optimizer.clip=-inf"], "--optimizer.clip=-inf: expected a finite number."),
    (["--best.mode=mx"], "--best.mode=mx: expected 'max' or 'min'."),
    (["--task.model.widths=1,x"], "--task.model.widths=1 x: expected tuple of int, at least 1."),
    (["--task.model.widths=0"], "--task.model.widths=(0,): expected tuple of int, at least 1."),
    (["--optimizer.nesterov=maybe"], "--optimizer.nesterov=maybe: expected bool."),
    (["steps=3"], "'steps=3': expected --a.b.c=value."),
    (["--batch_size=100", "--mesh.data=8"], "batch_size=100 is not divisible by mesh.data=8 x "
     "mesh.fsdp=1 = 8; the nearest that is: 96 or 104."),
    (["--mesh.data=9"], "mesh.data=9, mesh.fsdp=1, mesh.tensor=1 do not fit the 8 cpu device(s)"),
    (["--best.metric=tset/loss"], "best.metric=tset/loss: expected EVALUATOR/METRIC, with one of "
     "evals: test. Did you mean 'test'?"),
    (["--resume", "--workdir=x"], "--resume and --workdir exclude each other."),
])
def test_a_mistake_is_told_in_one_line(capfd: Captured, arguments: list[str],
                                       message: str) -> None:
    assert error(capfd, TINY, *arguments).startswith(message)


def test_nothing_to_resume(capfd: Captured, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error(capfd, TINY, "--resume") == (
        "there is no run in runs/tiny; --workdir=DIR names one.")


@pytest.mark.parametrize(("arguments", "message"), [
    (["trian"], "unknown mode 'trian'. Did you mean 'train'? The modes are train, evaluate, "
     "predict, export, sweep, check, preflight, verify-resume, show, list, launch, report, "
     "results."),
    (["--experiment=resnet_cifra"], "--experiment=resnet_cifra: no such experiment. Did you mean "
     "'resnet_cifar'?"),
    (["--experiment=no/such.py"], "--experiment=no/such.py: there is no such file."),
    (["--experiment"], "--experiment needs a value."),
    ([], "--experiment=NAME|FILE|RUN_DIR is missing; 'list' shows the names."),
    (["list", "--steps=3"], "list takes no arguments, got --steps=3."),
    (["--experiment=tests"], "--experiment=tests: the directory has no config.json, so it is not "
     "a run."),
    (["evaluate", TINY, "--workdir=tests"], "--workdir=tests: not a run directory."),
])
def test_a_mistake_beside_the_experiment(capfd: Captured, arguments: list[str],
                                         message: str) -> None:
    assert error(capfd, *arguments).startswith(message)


def test_leaves_are_typed_and_marked(capfd: Captured) -> None:
    assert cli.main(["show", TINY, "--task.model.widths=8,4", "--optimizer.clip=None",
                     "--optimizer.nesterov", "--data.augment.0.pad", "2", "--evals.test.every=5",
                     "--data.std=0.5"]) == 0
    out = capfd.readouterr().out
    for line in ("widths = (8, 4)    <- was (32,)", "clip = None    <- was 1.0",
                 "nesterov = True    <- was False", "pad = 2    <- was 1",
                 "every = 5    <- was 8", "std = (0.5,)    <- was (0.376,)"):
        assert line in out
    assert out.count("<- was") == 6
    command = cli.parse("train", str(ROOT / "tests" / "tiny.py"), ["--optimizer.clip=2"])
    assert command.typed == {"optimizer.clip": 2.0}
    assert isinstance(command.typed["optimizer.clip"], float)


@pytest.mark.parametrize(("text", "value"), [
    (".*(kernel|bias)", (".*(kernel|bias)",)), ("[Dd]ense.*", ("[Dd]ense.*",)),
    ("(a|b)/{1,2}", ("(a|b)/{1,2}",)), ("('a,b', 'c.*')", ("a,b", "c.*")), ("", ()),
])
def test_regexes_are_taken_as_they_are(text: str, value: tuple[str, ...]) -> None:
    command = cli.parse("train", str(ROOT / "tests" / "tiny.py"), [f"--task.freeze={text}"])
    assert command.typed == {"task.freeze": value}
    pairs = cli.parse("train", str(ROOT / "tests" / "tiny.py"),
                      ["--init_from.rename=(('head/.*', ''), ('a', 'b'))"])
    assert pairs.typed == {"init_from.rename": (("head/.*", ""), ("a", "b"))}


def test_help_lists_every_leaf_with_type_default_and_meaning(capfd: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([TINY, "--help"])
    assert stop.value.code == 0
    out = " ".join(capfd.readouterr().out.replace("│", " ").split())
    for text in ("--steps INT optimizer steps; schedules are in fractions of it. (default: 40)",
                 "--task.model.dropout {None}|FLOAT", "--data.augment.0.pad INT",
                 "--best.mode {max,min}", "--evals.test.every INT", "--workdir {None}|STR",
                 "--optimizer.learning_rate.warmup FLOAT"):
        assert text in out


def test_list_names_every_experiment(capfd: Captured) -> None:
    assert cli.main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {
        p.stem for p in (ROOT / "experiments").glob("*.py")}
    expected = "accuracy|%|nats|BLEU|MASE|ROUGE|dB|Frechet|error|bits|return|bricks|\\d of \\d"
    assert all(re.search(expected, line) for line in lines)


def test_a_run_directory_is_an_experiment(tmp_path: Path, capfd: Captured) -> None:
    assert cli.main(["--experiment=mlp_digits", "--steps=4", "--mesh.data=1", "--seed=5",
                     f"--workdir={tmp_path / 'a'}"]) == 0
    trained = capfd.readouterr().out
    assert (tmp_path / "a" / "overrides.txt").read_text() == "steps=4\nmesh.data=1\nseed=5\n"
    assert cli.main(["evaluate", f"--experiment={tmp_path / 'a'}"]) == 0
    table = capfd.readouterr().out.split("step 4\n")[1]
    assert table in trained, "the very table that training printed"
    assert cli.main([f"--experiment={tmp_path / 'a'}", f"--workdir={tmp_path / 'b'}"]) == 0
    a, b = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ab")
    assert a == b
    first, second = ((tmp_path / x / "metrics.jsonl").read_text().splitlines()[-1] for x in "ab")
    assert json.loads(first) == json.loads(second)


def test_a_run_of_the_users_own_classes_needs_their_file(tmp_path: Path, capfd: Captured) -> None:
    fit(tmp_path, shorter(steps=4))
    capfd.readouterr()
    assert "which is not part of jaxdl; name its file with --experiment=FILE and the run with " \
        "--workdir=RUN_DIR." in error(capfd, "evaluate", f"--experiment={tmp_path}")
    assert cli.main([TINY, "--steps=4", f"--workdir={tmp_path / 'own'}"]) == 0
    capfd.readouterr()
    assert cli.main(["evaluate", TINY, f"--workdir={tmp_path / 'own'}"]) == 0
    assert "test/accuracy" in capfd.readouterr().out


words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
keys = st.sampled_from(["steps", "task.model.widths", "optimizer.clip", "best.mode", "data.std",
                        "optimizer.nesterov", "init_from.rename", "rules", "evals.test", "workdir",
                        "mesh", "data.stand_in", "task.remat"])


@settings(deadline=None, derandomize=True, max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(words, st.builds("--{}={}".format, keys, words),
                          st.builds("--{}".format, st.one_of(keys, words))), max_size=4))
def test_no_command_line_ends_in_a_traceback(capfd: Captured, arguments: list[str]) -> None:
    if any(a in ("--help", "-h") for a in arguments):
        return
    status = cli.main(["show", TINY, *arguments])
    _, err = capfd.readouterr()
    assert status in (0, 2)
    assert err.count("\n") == (1 if status else 0), err
