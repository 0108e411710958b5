"""Configuration and command line: whatever is typed or recorded wrongly is refused in one line.

Rows 45 to 48 of the table of faults: typos of every key, wrong values for every leaf, what is not
installed or not here, and what the documents show.
"""

import argparse
import functools
import importlib.util
import json
import os
import random
import re
import shlex
import subprocess
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import cli, config, distributed, files, record
from jaxdl.errors import UserError
from tests.test_benchmarks import module

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@functools.cache
def experiment(name: str) -> Any:
    return files.build(files.load(ROOT / "experiments" / f"{name}.py"))


def error(capfd: Captured, *arguments: str, status: int = 2) -> str:
    """The one line of an error; nothing else is printed."""
    assert cli.main(list(arguments)) == status
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err.removeprefix("error: ").strip()


# 45: typos.


def typo(chance: random.Random, key: str, edits: int) -> str:
    """The key with so many characters deleted, replaced, inserted, or swapped with the next."""
    for _ in range(edits):
        at, letter = chance.randrange(len(key)), chance.choice("abcdefghijklmnopqrstuvwxyz_.")
        key = chance.choice([key[:at] + key[at + 1:], key[:at] + letter + key[at + 1:],
                             key[:at] + letter + key[at:],
                             key[:at] + key[at + 1:at + 2] + key[at] + key[at + 2:]])
    return key


@pytest.mark.parametrize(("edits", "share"), [(1, 0.99), (2, 0.98)])
def test_every_key_is_suggested_for_its_typos(edits: int, share: float) -> None:
    """Refused each time; how often the suggestion is right is measured over all of them."""
    chance, right, tried = random.Random(edits), 0, 0
    for name in NAMES:
        tree = {**config.children(cli.TrainOptions()), **config.children(experiment(name))}
        hints = {p: leaf.hint for p, leaf in config.leaves(tree)}
        for key in hints:
            wrong = typo(chance, key, edits)
            if wrong.replace("-", "_") in hints or not wrong or wrong[0] in "=-":
                continue
            with pytest.raises(UserError) as told:
                list(cli._flags([f"--{wrong}=1"], hints, tree))
            start, _, suggestion = str(told.value).partition(" Did you mean ")
            if "names a whole" not in start:  # "--data": a node.
                assert start == f"--{wrong}: no such field."
                tried, right = tried + 1, right + (suggestion == f"--{key}?")
    assert tried > 1_000 and right / tried >= share, f"{right} of {tried}"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--step=3"], "--step: no such field. Did you mean --steps?"),
    (["--batchsize=3"], "--batchsize: no such field. Did you mean --batch_size?"),
    (["--lr=3"], "--lr: no such field."),
    (["--widths=3"], "--widths: no such field. Did you mean --task.model.widths?"),
    (["--task.model=3"], "--task.model: names a whole MLP; set what is in it: --task.model.widths, "
     "--task.model.classes, --task.model.activation, --task.model.batch_norm, "
     "--task.model.norm_last, --task.model.dropout, --task.model.initial."),
    (["--data.augment=3"], "--data.augment: a tuple of Callable is set in an experiment's file, "
     "not by a flag."),
    (["--rules=3"], "--rules: a tuple of Rule is set in an experiment's file, not by a flag."),
    (["--data.stand_in=3"], "--data.stand_in: a StandIn or None is set in an experiment's file, "
     "not by a flag."),
    (["--worckdir=x"], "--worckdir: no such field. Did you mean --workdir?"),
    (["--"], "--: no such field."),
    (["-steps=3"], "'-steps=3': expected --a.b.c=value."),
])
def test_a_typo_and_its_line(capfd: Captured, arguments: list[str], message: str) -> None:
    assert error(capfd, "--experiment=mlp_digits", *arguments) == message


# 46: wrong values.


def wrong(hint: Any) -> st.SearchStrategy[Any]:
    """JSON values that no field of this type may have. Made from the type; `config.fits` is not
    asked."""
    anything: dict[str, st.SearchStrategy[Any]] = {
        "none": st.none(), "bool": st.booleans(), "whole": st.integers(-1000, 1000),
        "part": st.floats(-1e6, 1e6).filter(lambda x: x != int(x)),
        "text": st.text(max_size=20), "list": st.lists(st.none(), min_size=1, max_size=3),
        "object": st.sampled_from([{}, {"a": 1}, {"_": "os:system"}, {"_": 3},
                                   {"_": "jaxdl.experiment:Mesh"}, {"": {}}]),
        "never": st.sampled_from([10 ** 30, -10 ** 30, 10 ** 400, 1e39, -1e300, float("nan"),
                                  float("inf"), -float("inf"), "\x00", "a\x00b", "\ud800"])}
    for kind in allowed(hint):
        anything.pop(kind, None)
    if kinds(hint) & {float}:
        anything.pop("whole")
    low, high = bounds(hint)
    if low is not None and int in kinds(hint) | {hint}:
        anything["below"] = st.integers(max_value=int(low) - 1)
    if low is not None and float in kinds(hint):
        anything["below"] = st.floats(max_value=low, exclude_max=True, allow_nan=False)
    if high is not None and high < 1e9:
        anything["above"] = st.floats(min_value=high, exclude_min=True, allow_nan=False)
    return st.one_of(*anything.values())


def kinds(hint: Any) -> set[Any]:
    """The plain types that a type is made of."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kinds(args[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds, args))
    if origin is Literal:
        return {type(a) for a in args}
    return {tuple} if origin is tuple else {hint}


def allowed(hint: Any) -> set[str]:
    """Which of the strategies in `wrong` could make a value that fits."""
    names = {type(None): "none", bool: "bool", int: "whole", float: "part", str: "text",
             tuple: "list"}
    return {names.get(kind, "object") for kind in kinds(hint)}


def bounds(hint: Any) -> tuple[float | None, float | None]:
    """The lowest and the highest number of a type."""
    for part in (hint, *typing.get_args(hint)):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, config.Between):
                return note.low, note.high
    return None, None


MESH = {"_": "jaxdl.experiment:Mesh"}
LEAVES = [(name, path, leaf) for name in NAMES for path, leaf in config.leaves(experiment(name))]


def rebuilt(name: str, path: str, value: Any) -> Any:
    """The experiment of a record whose leaf at `path` has this value."""
    data = config.to_json(experiment(name))
    node, *names = data, *path.split(".")
    for key in names[:-1]:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(names[-1]) if isinstance(node, list) else names[-1]] = value
    return cli.rebuilt(record.Recorded(name, data, None, None, ""), Path("run"), ())


@settings(deadline=None, derandomize=True, max_examples=1_500)
@given(st.data())
def test_a_record_with_a_wrong_value_is_refused_by_the_name_of_the_leaf(data: Any) -> None:
    name, path, leaf = data.draw(st.sampled_from(LEAVES))
    value = data.draw(wrong(leaf.hint))
    with pytest.raises(UserError) as told:
        rebuilt(name, path, value)
    text = str(told.value)
    assert path in text or "depth=" in text, text  # The model itself refuses a depth.
    if f"{path}=" in text:  # Else it names a class that there is not, or a name that is none.
        assert re.search(r": expected .+\.$", text), text


@pytest.mark.parametrize("value", ["nothing here", [[]], {"_": "jaxdl.experiment:Mesh"}, 10 ** 400,
                                   {"a": 1}, "\ud800"])
def test_no_leaf_of_any_experiment_takes_it(value: Any) -> None:
    """One after another; text is fine where text is expected."""
    for name, path, leaf in LEAVES:
        if value == "nothing here" and str in kinds(leaf.hint) and not has_literal(leaf.hint):
            continue
        with pytest.raises(UserError, match=r"^" + re.escape(path)):
            rebuilt(name, path, value)


def has_literal(hint: Any) -> bool:
    return any(typing.get_origin(a) is Literal for a in (hint, *typing.get_args(hint)))


@pytest.mark.parametrize(("path", "value", "message"), [
    ("steps", "3", "steps='3': expected int, at least 1."),
    ("steps", True, "steps=True: expected int, at least 1."),
    ("steps", 0, "steps=0: expected int, at least 1."),
    ("steps", 10 ** 20, "steps=100000000000000000000: expected int, at least 1, in 32 bits."),
    ("steps", None, "steps=None: expected int, at least 1."),
    ("steps", [1], "steps=(1,): expected int, at least 1."),
    ("steps", {}, "steps={}: expected int, at least 1."),
    ("task", 3, "task=3: expected Task."),
    ("task", MESH, "task=Mesh(data=-1, fsdp=1, tensor=1): expected Task."),
    ("data", MESH, "data=Mesh(data=-1, fsdp=1, tensor=1): expected Data."),
    ("mesh", {"_": "jaxdl.experiment:Best"},
     "mesh=Best(metric=None, mode='max', patience=None): expected Mesh."),
    ("optimizer", None, "optimizer=None: expected Optimizer or Mapping."),
    ("optimizer.learning_rate", 0.1, "optimizer.learning_rate=0.1: expected Schedule."),
    ("optimizer.clip", float("nan"), "optimizer.clip=nan: expected a finite number."),
    ("optimizer.clip", 1e39,
     "optimizer.clip=1e+39: expected float, at least 0 or None, in 32 bits."),
    ("evals", [], "evals=(): expected Mapping."),
    ("evals", {"a.b": {"_": "jaxdl.evaluate:Evaluate"}},
     "evals: 'a.b' is no name: expected letters, digits, _ and -."),
    ("evals.test", MESH, "evals.test=Mesh(data=-1, fsdp=1, tensor=1): expected Evaluator."),
    ("evals.test.every", -1, "evals.test.every=-1: expected int, at least 1."),
    ("best.metric", "\x00", "best.metric='\\x00': expected str or None, in UTF-8 and without NUL."),
    ("best.mode", "least", "best.mode='least': expected 'max' or 'min'."),
    ("task.freeze", ["("], "task.freeze=('(',): expected tuple of str, a regular expression."),
    ("task.freeze", ["a{9999999999}"],
     "task.freeze=('a{9999999999}',): expected tuple of str, a regular expression."),
    ("task.model.widths", [1, "x"],
     "task.model.widths=(1, 'x'): expected tuple of int, at least 1."),
    ("task.model.parent", None,
     "task.model.parent: MLP of this version of jaxdl has no such field."),
    ("rules", [MESH],
     "rules=(Mesh(data=-1, fsdp=1, tensor=1),): expected tuple of Rule."),
    ("seed", "x" * 200, f"seed='{'x' * 89}... (202 characters): expected int, between 0 and "
     "4.29497e+09."),
])
def test_a_wrong_value_and_its_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as told:
        rebuilt("mlp_digits", path, value)
    assert str(told.value) == message


TYPED = [(path, leaf) for path, leaf in config.leaves(experiment("mlp_digits"))
         if cli._is_plain(leaf.hint)]


def test_every_leaf_refuses_what_is_typed_wrongly() -> None:
    """By its name, with what was typed and what is expected."""
    wrong_text = {int: "1.5", float: "1,5", bool: "maybe", tuple: "1,x"}
    seen = 0
    for path, leaf in TYPED:
        text = "zzz" if has_literal(leaf.hint) else next(
            (wrong_text[k] for k in kinds(leaf.hint) if k in wrong_text), None)
        if text is None or "str" in config.describe(leaf.hint):
            continue
        seen += 1
        with pytest.raises(UserError) as told:
            cli.parse_flags(experiment("mlp_digits"), cli.ShowOptions(), [f"--{path}={text}"], "x")
        assert str(told.value) == (f"--{path}={text.replace(',', ' ') if text == '1,x' else text}: "
                                   f"expected {config.describe(leaf.hint)}.")
    assert seen > 25


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from([t for t in TYPED if str not in kinds(t[1].hint)]), st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
    st.floats().map(str), st.integers().map(str), st.sampled_from(["9" * 400, "1e999", "None"])))
def test_what_is_typed_fits_or_is_refused(leaf: tuple[str, Any], text: str) -> None:
    path, hint = leaf[0], leaf[1].hint
    try:
        _, typed = cli.parse_flags(experiment("mlp_digits"), cli.ShowOptions(),
                                   [f"--{path}={text}"], "x")
    except UserError as told:
        assert str(told).startswith(f"--{path}=") and ": expected " in str(told)
    else:
        config.check(config.replace(experiment("mlp_digits"), typed))
        assert allowed_value(typed[path], hint)


def allowed_value(value: Any, hint: Any) -> bool:
    return type(value) in {type(x) if isinstance(x, str) else x for x in kinds(hint)}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--steps", "3", "--steps=x"], "--steps=x: expected int, at least 1."),
    (["--optimizer.l2=1", "--best.mode=x"], "--best.mode=x: expected 'max' or 'min'."),
    (["--steps=1_0"], None), (["--seed=1e3"], "--seed=1e3: expected int, between 0 and "
                              "4.29497e+09."),
    (["--data.std", "1,2"], None), (["--task.model.widths", "8,4"], None),
    (["--preempt_grace=0"], "--preempt_grace=0.0: expected float, between 0.1 and 1e+06 or None."),
    (["--stuck_after=1e300"],
     "--stuck_after=1e+300: expected float, between 0.1 and 1e+06 or None, in 32 bits."),
    (["--optimizer.clip=1e999"], "--optimizer.clip=inf: expected a finite number."),
    (["--task.freeze=" + "(" * 3000], f"--task.freeze=('{'(' * 88}... (3,005 characters): expected "
     "tuple of str, a regular expression."),
    (["--steps=" + "9" * 5000], f"--steps={'9' * 90}... (5,000 characters): expected int, at least "
     "1."),
    (["--best.metric=\udcff"], "'--best.metric=\\udcff': expected str, in UTF-8 and without NUL."),
    (["--workdir=a\x00b"], "'--workdir=a\\x00b': expected str, in UTF-8 and without NUL."),
    (["--workdir=~nobody-here/x"], "--workdir=~nobody-here/x: Could not determine home directory."),
    (["--workdir=" + "x" * 300], f"--workdir={'x' * 300}: cannot be written (File name too long)."),
    (["--workdir=/dev/null"], "--workdir=/dev/null: cannot be written (Not a directory)."),
    (["--profile=1:9999"], "--profile=1:9999: the run ends at step 1,000, so STOP may be at most "
     "1000."),
    (["--sinks=tensorbord"], "--sinks=tensorbord: expected tuple of 'tensorboard' or 'wandb' or "
     "'mlflow'. Did you mean 'tensorboard'?"),
])
def test_a_mistyped_value_and_its_line(capfd: Captured, monkeypatch: pytest.MonkeyPatch,
                                       arguments: list[str], message: str | None) -> None:
    monkeypatch.setattr("jaxdl.train.fit", lambda experiment, run, **options: run.close())
    if message is None:
        assert cli.main(["show", "--experiment=mlp_digits", *arguments]) == 0
    else:
        assert error(capfd, "--experiment=mlp_digits", *arguments) == message


@pytest.mark.parametrize(("arguments", "message"), [
    (["launch", "--processes=" + "9" * 5000], f"--processes={'9' * 90}... (5,000 characters): "
     "expected a number from 1 to 1,024."),
    (["launch", "--processes=0"], "--processes=0: expected a number from 1 to 1,024."),
    (["launch", "--processes=2", "show"], "launch show: launch takes train or evaluate."),
    (["--experiment=/etc/passwd"], "--experiment=/etc/passwd: not an experiment file, which ends "
     "in .py, nor a run directory."),
    (["--experiment=~nobody-here/x.py"], "--experiment=~nobody-here/x.py: Could not determine home "
     "directory.."),
    (["--experiment=\x1b[2J"], "--experiment=\\x1b[2J: no such experiment. 'list' shows all "
     f"{len(NAMES)}."),
    (["--experiment="], "--experiment=: the directory has no config.json, so it is not a run."),
    (["a\nb"], "unknown mode 'a b'. The modes are train, evaluate, predict, export, sweep, "
     "check, preflight, verify-resume, show, list, launch, report, results."),
])
def test_beside_the_leaves(capfd: Captured, arguments: list[str], message: str) -> None:
    assert error(capfd, *arguments) == message


def test_help_of_every_mode(capfd: Captured) -> None:
    for arguments in (["--help"], ["launch", "-h"], ["show", "--help"], ["list", "--help"]):
        assert cli.main(arguments) == 0
        assert capfd.readouterr().out.startswith("usage: jaxdl [MODE]")


def test_names_of_evaluators_are_any_that_a_path_can_hold(tmp_path: Path, capfd: Captured) -> None:
    """Also those that Python cannot name."""
    source = (ROOT / "experiments" / "mlp_digits.py").read_text()
    evals = 'evals={"test": Evaluate(split="test", every=250)'
    names = ["class", "top-5", "2nd", "étage", "_x", "None"]
    more = "".join(f', "{n}": Evaluate(split="test", every=9)' for n in names)
    path = tmp_path / "named.py"
    path.write_text(source.replace(evals, evals + more))
    typed = [f"--evals.{n}.every={i + 10}" for i, n in enumerate(names)]
    assert cli.main(["show", f"--experiment={path}", *typed]) == 0
    assert re.findall(r"every = (\d+)    <- was 9", capfd.readouterr().out) == [
        str(i + 10) for i in range(len(names))]
    for bad in ("a.b", "a/b", "", "a b"):
        path.write_text(source.replace(evals, evals + f', "{bad}": Evaluate(every=9)'))
        assert error(capfd, "show", f"--experiment={path}") == (
            f"{path}: evals: '{bad}' is no name: expected letters, digits, _ and -.")


# 47: what is not here.


def run(arguments: list[str], code: str = "", status: int = 2, **environment: str) -> str:
    """The one line of a command in a process of its own."""
    start = f"import sys; sys.argv[1:] = {arguments!r}; sys.argv[0] = 'launch.py'\n"
    end = "import runpy; runpy.run_path('launch.py', run_name='__main__')\n"
    done = subprocess.run([sys.executable, "-c", start + code + end], capture_output=True,
                          text=True, env={**os.environ, **environment}, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def test_a_platform_that_is_not_here() -> None:
    assert re.fullmatch(
        r"error: JAX_PLATFORMS=nonsense: no such device here \(Unable to initialize backend "
        r"'nonsense': Backend 'nonsense' is not in the list of known backends: \['cpu', 'tpu'.*\]"
        r"\. \(set JAX_PLATFORMS='' to automatically choose an available backend\)\); "
        r"unset it, or install what it needs, as by pip install 'jax\[cuda13\]'\.",
        run(["--experiment=mlp_digits", "--steps=1"], JAX_PLATFORMS="nonsense"))
    assert not (ROOT / "runs").exists() or "nonsense" not in os.listdir(ROOT / "runs")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    """What JAX does for JAX_PLATFORMS=cuda where there is none: it asserts."""
    import jax

    def devices() -> Any:
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    old = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cuda")
    try:
        told = error(capfd, "--experiment=mlp_digits")
    finally:
        jax.config.update("jax_platforms", old)
    assert told == (
        "JAX_PLATFORMS=cuda: no such device here (none found); unset it, or install what it needs, "
        "as by pip install 'jax[cuda13]'.")


@pytest.mark.parametrize(("version", "python"), [((3, 10, 13), "3.10"), ((3, 9, 1), "3.9")])
def test_another_python(version: tuple[int, ...], python: str) -> None:
    """Before anything of jaxdl is imported, whose syntax it could not read."""
    code = f"sys.version_info = {version!r}\nsys.modules['jaxdl'] = None\n"
    assert run(["list"], code) == f"error: Python 3.11 or newer is needed, this is {python}."


def test_another_python_in_make(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    old = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$2"\n')
    python.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(["make", "train", f"PYTHON={python}"], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed: make PYTHON=python3.12\n" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("name", ["tyro", "docstring_parser"])
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, capfd: Captured,
                                   name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert error(capfd, "show", "--experiment=mlp_digits") == (
        f"import of {name} halted; None in sys.modules; 'pip install --editable .' in the folder "
        "of jaxdl brings what it needs")


def test_a_sink_that_is_not_installed_or_fails(monkeypatch: pytest.MonkeyPatch, capfd: Captured,
                                               tmp_path: Path) -> None:
    """Told before anything is computed or written; what it raises is its own, in one line."""
    found = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name in ("wandb", "mlflow") else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    for name in ("wandb", "mlflow"):
        assert error(capfd, "--experiment=mlp_digits", f"--sinks={name}",
                     f"--workdir={tmp_path / 'run'}") == f"--sinks={name} needs: pip install {name}"
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    (tmp_path / "wandb.py").write_text(
        "class UsageError(Exception): pass\n"
        "def init(**options): raise UsageError('api_key not configured.\\n Call login.')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    from jaxdl import sinks

    (tmp_path / "config.json").write_text('{"name": "x"}')
    with pytest.raises(UserError) as told:
        sinks.open_sinks(("wandb",), tmp_path, 0)
    assert str(told.value) == ("--sinks=wandb: UsageError: api_key not configured. Call login.")
    sys.modules.pop("wandb", None)


def test_the_reader_of_the_output_leaves() -> None:
    """`list | head -1`, and an output that is full."""
    command = [sys.executable, "launch.py", "list"]
    left, right = os.pipe()
    os.close(left)
    done = subprocess.run(command, stdout=right, stderr=subprocess.PIPE, text=True)
    os.close(right)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_experiment_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capfd: Captured) -> None:
    """`list` shows the others; a working folder that is gone has none."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "folder.py").mkdir()
    (folder / "lost.py").symlink_to(tmp_path / "nowhere")
    (folder / "nul.py").write_bytes(b"'''x'''\0")
    (folder / "binary.py").write_bytes(b"\xff\xfe\xfa")
    (folder / "deep.py").write_text("(" * 500 + ")" * 500)
    (folder / "good.py").write_text('"""A good one."""\n')
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^good +A good one\.$", out, re.M)
    for name in ("folder", "lost", "nul", "binary", "deep"):
        assert re.search(rf"^{name} +\(cannot be read: .+\)$", out, re.M), out
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(["list"]) == 0
    assert "mlp_digits" in capfd.readouterr().out
    monkeypatch.chdir(ROOT)


# 48: the documents.

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RESULTS.md",
             *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md",
             *sorted((ROOT / "experiments").glob("*.py")), ROOT / "launch.py"]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(document, words) of every command that calls jaxdl or a benchmark."""
    for path in DOCUMENTS:
        text = re.sub(r"`([^`\n]+)\n([^`\n]+)`", r"`\1 \2`", prose(path))
        spans = [line for line in text.splitlines() if re.match(r" {4}|\$ |\.venv", line)]
        spans += re.findall(r"`([^`\n]+)`", text)
        for span in spans:
            words = shlex.split(span.split(" #")[0].replace("'", ""))
            while words and re.match(r"[A-Z_]+=|(\$|chrt|-r|5)$", words[0]):
                words = words[1:]
            if words and re.fullmatch(r"(\.venv/bin/)?python(3\.12)?", words[0]):
                words = words[1:]
            if words and re.search(r"(^|/)(launch\.py|jaxdl|\w+\.py)$", words[0]) and (
                    len(words) > 1 or words[0].startswith("benchmarks/")):
                yield path.name, words


def prose(path: Path) -> str:
    """A document, without the blocks that test_docs.py runs."""
    blocks = r"^```(?:sh|console|python)\n.*?^```$" if path.parent.name == "docs" else r"(?!)"
    return re.sub(blocks, "", path.read_text(), flags=re.M | re.S)


def test_every_documented_command_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capfd: Captured) -> None:
    """With an experiment, a file, a run and a folder in the place of the words for them."""
    recorded = {"format": 1, "name": "mlp_digits", "stand_in": None, "fingerprint": None,
                "expected": "", "experiment": config.to_json(experiment("mlp_digits"))}
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "experiments" / "mlp_digits.py").read_text())
    places = {"RUN_DIR": str(tmp_path), "NAME": "mlp_digits", "path/to/mine.py": str(mine),
              "DIR": str(tmp_path), "runs/resnet_cifar/2026-01-31_12-00-00": str(tmp_path)}
    parsed: list[str] = []

    def instead(mode: str) -> cli.Mode:
        return cli.MODES[mode].__class__(lambda command: parsed.append(mode) or 0,
                                         cli.MODES[mode].options, "")

    monkeypatch.setattr(cli, "MODES", {mode: instead(mode) for mode in cli.MODES})
    monkeypatch.setattr(distributed, "launch", lambda count, args: parsed.append("launch") or 0)
    monkeypatch.setattr("jaxdl.report.run", lambda *a: parsed.append("report"))
    monkeypatch.setattr("jaxdl.results.run", lambda *a: parsed.append("results"))
    seen, benchmarks = 0, 0
    for document, words in commands():
        for word, place in places.items():
            words = [re.sub(rf"(?<![A-Z_]){re.escape(word)}(?![A-Z_])", lambda m, p=place: p, w)
                     for w in words]
        if words[0].startswith("benchmarks/"):
            check_benchmark(words, monkeypatch)
            benchmarks += 1
        elif words[0].endswith(("launch.py", "jaxdl")) and "..." not in " ".join(words):
            before = len(parsed)
            try:
                status = cli.main(words[1:])
            except SystemExit as stop:  # --help
                status, parsed = stop.code, [*parsed, "help"]
            out, err = capfd.readouterr()
            if err and err.strip() in documented_errors():
                continue
            assert status == 0 and not err, (document, words, err)
            assert len(parsed) > before or out, (document, words)
            seen += 1
    assert seen >= 25 and benchmarks >= 6, (seen, benchmarks)


class Parsed(Exception):
    """The arguments were taken."""


def check_benchmark(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parser takes the flags; without flags there may be none."""
    if not words[1:]:
        return
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *args: Any) -> None:
        parse(parser, words[1:])
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        with pytest.raises(Parsed):
            module(Path(words[0]).stem, patch).main()


def test_every_documented_file_flag_and_variable_exists() -> None:
    """Paths in backquotes; flags are checked with their commands, or here by their names."""
    flags = {p for name in NAMES for p, _ in config.leaves(experiment(name))}
    flags |= {p for mode in cli.MODES.values() for p, _ in config.leaves(mode.options())}
    flags |= {p for p, _ in config.leaves(cli.ReportOptions())}
    flags |= {"experiment", "processes", "help"}
    for path in (ROOT / "benchmarks").glob("*.py"):
        flags |= set(re.findall(r'"--([\w-]+)"', path.read_text()))
    source = "".join(p.read_text() for p in [*(ROOT / "jaxdl").rglob("*.py"), ROOT / "Makefile",
                                             *(ROOT / "tests").glob("*.py")])
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for file in re.findall(r"`((?:jaxdl|docs|tests|experiments|benchmarks)/[\w/.]+)`", text):
            assert (ROOT / file).exists(), (path.name, file)
        for variable in re.findall(r"\b(JAXDL_[A-Z_]+)", text):
            assert variable in source, (path.name, variable)
        for flag in re.findall(r"`--([\w.]+)", text):
            assert flag in flags or any(f.startswith(flag + ".") for f in flags), (path.name, flag)


def documented_errors() -> list[str]:
    """Whole lines "error: ..." that the documents show."""
    found = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        found += re.findall(r"^\s*(error: .+)$", prose(path), re.M)
    return found


def test_every_error_that_the_documents_show_is_what_is_printed(
        tmp_path: Path, capfd: Captured) -> None:
    """But for numbers, lines of code and the folder, which are of a machine and a day."""
    mistyped, bad = documented_errors()
    assert mistyped == "error: " + error(capfd, "--experiment=mlp_digits",
                                         "--task.model.widhts=256")
    assert cli.main(["--experiment=mlp_digits", "--optimizer.learning_rate.peak=1e20",
                     f"--workdir={tmp_path}", "--mesh.data=1"]) == 1
    printed = capfd.readouterr().err.strip()

    def shape(line: str, folder: str) -> str:
        return re.sub(r"-?[\d.]+(e[+-]?\d+)?", "#", line.replace(folder, "RUN"))

    folder = re.search(r"runs/mlp_digits/[\d_-]+", bad)
    assert folder is not None
    assert shape(printed, str(tmp_path)) == shape(bad, folder[0])


def test_mappings_are_checked_by_what_is_in_them() -> None:
    assert config.fits({"a": 1}, Mapping[str, int])
    assert not config.fits({"a": "x"}, Mapping[str, int])
