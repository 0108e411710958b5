"""What a run depends on beside its experiment is recorded, and a change of it is told."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxdl import environment
from jaxdl.cli import main
from jaxdl.environment import changes, code, current

EXPERIMENT = '''"""A model of the user's."""
import json
import dataclasses
import flax.linen as nn
from jaxdl.data.digits import Digits
from jaxdl.experiment import Experiment
from jaxdl.optimizer import SGD, Constant
from jaxdl.tasks.classification import Classification
from net_of_mine import Net


def config():
    return Experiment(task=Classification(model=Net()), data=Digits(size=8, channels=1),
                      optimizer=SGD(learning_rate=Constant(peak=0.1)), steps=2, batch_size=8)
'''
NET = '''import flax.linen as nn
import layers_of_mine


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10)(layers_of_mine.flat(x))
'''
LAYERS = '''def flat(x):
    return x.reshape(x.shape[0], -1)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment file that takes its model from a second file, and that from a third."""
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    (tmp_path / "net_of_mine.py").write_text(NET)
    (tmp_path / "layers_of_mine.py").write_text(LAYERS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("net_of_mine", "layers_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "mine.py"


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_of_an_experiment_is_all_of_the_users_files(
        mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = code(loaded(mine, monkeypatch))
    assert list(found) == ["layers_of_mine.py", "mine.py", "net_of_mine.py"]
    mine.write_text(EXPERIMENT + "\n# a comment\n")
    again = code(loaded(mine, monkeypatch))
    assert {name for name in found if found[name] != again[name]} == {"mine.py"}


def test_changed_code_does_not_continue_a_run(mine: Path, capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    run = mine.parent / "run"
    command = [f"--experiment={mine}", f"--workdir={run}", "--mesh.data=1"]
    assert main(command) == 0
    assert main(command) == 0
    layers = mine.parent / "layers_of_mine.py"
    layers.write_text(LAYERS.replace("-1)", "-1) * 2"))
    for name in ("net_of_mine", "layers_of_mine"):
        monkeypatch.delitem(sys.modules, name)
    capsys.readouterr()
    assert main([*command, "--steps=3"]) == 2
    assert capsys.readouterr().err == (
        f"error: --workdir={run}: holds another experiment (steps: 2 then, 3 now; the code of "
        "layers_of_mine.py has changed). Choose another, or continue it so with "
        "--accept_changes.\n")
    assert main([*command, "--accept_changes"]) == 0
    recorded = json.loads((run / "config.json").read_text())["code"]
    assert set(recorded) == {"layers_of_mine.py", "mine.py", "net_of_mine.py"}


LAUNCH: dict[str, Any] = {
    "jaxdl": "0.1.0", "source": "aaaa", "python": "3.11.7", "devices": ["cpu:0 cpu", "cpu:1 cpu"],
    "versions": {"jax": "0.10.2", "grain": None}, "flags": {"jax_threefry_partitionable": True},
    "random": [1, 2]}


@pytest.mark.parametrize(("change", "told"), [
    ({}, []),
    ({"versions": {"jax": "0.12.0"}}, ["jax (0.10.2 then, 0.12.0 now)"]),
    ({"versions": {"jax": "0.10.2", "grain": "0.2.18"}}, []),  # it was not there
    ({"python": "3.12.1"}, ["Python (3.11.7 then, 3.12.1 now)"]),
    ({"jaxdl": "0.2.0", "source": "bbbb"}, [
        "jaxdl (0.1.0 then, 0.2.0 now)", "the source of jaxdl (aaaa then, bbbb now)"]),
    ({"devices": ["cpu:0 cpu"]}, ["the devices (2 cpu cpu then, 1 cpu cpu now)"]),
    ({"flags": {"jax_threefry_partitionable": False}}, [
        "jax_threefry_partitionable (True then, False now)"]),
    ({"random": [3, 4]}, ["what JAX draws from key 0 ([1, 2] then, [3, 4] now)"]),
])
def test_what_changed_between_two_launches(change: dict[str, Any], told: list[str]) -> None:
    assert changes(LAUNCH, {**LAUNCH, **change}) == told


@pytest.mark.parametrize("old", [None, [], 7, {}, {"versions": 3, "devices": "x"}])
def test_a_record_of_another_kind_changes_nothing(old: Any) -> None:
    assert [line for line in changes(old, LAUNCH) if "devices" not in line] == []


def test_a_launch_is_the_same_as_itself_and_another_threefry_is_not() -> None:
    now = json.loads(json.dumps(current(0, jax.devices())))
    assert changes(now, current(5, jax.devices())) == []
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        told = changes(now, current(0, jax.devices()))
    assert told[0].startswith("what JAX draws from key 0 (")
    assert told[1].startswith("jax_threefry_partitionable (")


def test_secrets_of_the_environment_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-token")
    assert "planted-token" not in json.dumps(current(0, []))
    assert environment.source() == environment.source()
