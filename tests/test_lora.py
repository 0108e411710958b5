"""Low-rank adapters: what is trained, what they add, and how they come and go."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config, weights
from jaxdl.checkpoint import arrays
from jaxdl.errors import UserError
from jaxdl.models.cnn import CNN
from jaxdl.task import named
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.lora import LoRA, merged, unmerged
from jaxdl.tasks.sharpness import SAM

INNER = Classification(model=CNN(channels=(3, 4), dense=(5,), classes=3))
BATCH = {"image": jax.random.normal(jax.random.key(0), (4, 8, 8, 1)),
         "label": jnp.array([0, 1, 2, 1]), "mask": jnp.array([1., 1., 1., 0.]),
         "index": jnp.arange(4)}
TASK = LoRA(task=INNER, targets=("conv2/kernel", "dense1/kernel"), rank=2, alpha=3.0)
HEAD = dataclasses.replace(TASK, train=("head/.*",))


def trained(task: Any, steps: int) -> list[Any]:
    tx = optax.adam(0.05)
    states = [jax.jit(lambda: task.init(jax.random.key(1), BATCH, tx))()]
    step = jax.jit(lambda state: task.step(state, BATCH, tx)[0])
    for _ in range(steps):
        states.append(step(states[-1]))
    return states


def test_the_network_begins_as_it_was_and_only_adapters_move() -> None:
    first, last = (states := trained(TASK, 5))[0], states[-1]
    assert sorted(named(first.params)) == [f"lora/{p}/kernel/{x}" for p in ("conv2", "dense1")
                                           for x in "ab"]
    assert {p: x.shape for p, x in named(first.params["lora"]["conv2"]).items()} == {
        "kernel/a": (27, 2), "kernel/b": (2, 4)}
    chex.assert_trees_all_equal_shapes(first.opt_state[0].mu, first.params)  # and of nothing else
    chex.assert_trees_all_equal(first.frozen, last.frozen)
    plain = jax.jit(lambda: INNER.loss({"params": first.frozen}, BATCH, jax.random.key(0),
                                       train=False)[0])()
    evaluate = jax.jit(TASK.evaluate)
    assert evaluate(first, BATCH)["loss"].value() == plain.value()
    assert evaluate(last, BATCH)["loss"].value() < 0.9 * plain.value()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params, last.params)
    assert all(jax.tree.leaves(moved))


def test_adapters_are_added_and_taken_away() -> None:
    state = trained(HEAD, 3)[-1]
    assert "head" in state.params and "head" not in state.frozen
    params = {**state.frozen, **state.params}
    network = merged(params, TASK.alpha, TASK.rank)
    a, b = (np.asarray(state.params["lora"]["conv2"]["kernel"][x], np.float64) for x in "ab")
    expected = np.asarray(state.frozen["conv2"]["kernel"]) + 1.5 * (a @ b).reshape(3, 3, 3, 4)
    np.testing.assert_allclose(network["conv2"]["kernel"], expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(network["conv1"], state.frozen["conv1"])
    back = unmerged(network, params["lora"], TASK.alpha, TASK.rank)
    chex.assert_trees_all_close(back, params, rtol=1e-4, atol=1e-6)
    # What predicts sees the sum, and so does what is exported.
    logits = INNER.model.apply({"params": network}, BATCH["image"], train=False)
    chex.assert_trees_all_close(HEAD.logits(state, BATCH), logits, rtol=1e-5)
    chex.assert_trees_all_equal(HEAD.innermost({"params": params})["params"], network)


@pytest.mark.parametrize("wrap", [lambda t: SAM(task=t), lambda t: dataclasses.replace(
    t, task=SAM(task=INNER)), lambda t: SAM(task=SAM(task=t)), lambda t: dataclasses.replace(
    t, ema=0.9, accumulate=2)])
def test_it_composes(wrap: Any) -> None:
    task = wrap(HEAD)
    first, last = (states := trained(task, 3))[0], states[-1]
    chex.assert_trees_all_equal(first.frozen, last.frozen)
    assert sorted(last.params) == ["head", "lora"]
    params = {**last.frozen, **(last.params if last.ema is None else last.ema)}
    network = task.innermost({"params": params})["params"]
    logits = INNER.model.apply({"params": network}, BATCH["image"], train=False)
    chex.assert_trees_all_close(task.logits(last, BATCH), logits, rtol=1e-4, atol=1e-6)
    assert config.from_json(config.to_json(task)) == task


@pytest.mark.parametrize("changes,message", [
    ({"targets": ("dense/kernel",)}, "LoRA: targets: 'dense/kernel' matches no parameter. Did you"),
    ({"targets": ("dense1/bias",)}, r"dense1/bias has the shape \(5,\); an adapter needs two"),
    ({"rank": 6}, "rank=6 is more than conv2/kernel has: 27 x 4"),
    ({"train": ("haed/.*",)}, "LoRA: train: 'haed/.*' matches no parameter.")])
def test_mistakes(changes: Any, message: str) -> None:
    task = dataclasses.replace(TASK, **changes)
    with pytest.raises(UserError, match=message):
        trained(task, 0)


def test_adapters_come_and_go_as_a_small_file(tmp_path: Path, capfd: Any) -> None:
    text = '''
from jaxdl.data.digits import Digits
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, InitFrom
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.lora import LoRA

INNER = Classification(model=MLP(widths=(6,), classes=10))
LOW = LoRA(task=INNER, targets=("dense1/kernel",), rank=2, train=("head/.*",))

def config():
    return Experiment(task=TASK, data=Digits(), optimizer=SGD(), steps=3, batch_size=8,
                      evals={"test": Evaluate(split="test", every=3)}, INIT)
'''
    def run(name: str, task: str, *options: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace("TASK", task).replace(
            "INIT", "init_from=InitFrom(fresh=('params/lora/.*',))"))
        assert cli.main([f"--experiment={path}", f"--workdir={tmp_path / name}", *options]) == 0
        return tmp_path / name

    def export(of: Path, to: str, *options: str) -> dict[str, Any]:
        path = tmp_path / to
        assert cli.main(["export", f"--experiment={tmp_path / of.name}.py", f"--workdir={of}",
                         f"--output={path}", *options]) == 0
        return weights.read(path, list(weights.shapes(path)))

    base = run("base", "INNER")
    low = run("low", "LOW", f"--init_from.path={base}", "--optimizer.learning_rate.peak=0.5")
    small = export(low, "adapters.safetensors", "--only=(lora|head)/.*")
    found = arrays(low / "checkpoints", 3)
    assert sorted(small) == ["params/head/bias", "params/head/kernel",
                             "params/lora/dense1/kernel/a", "params/lora/dense1/kernel/b"]
    for path, x in small.items():
        np.testing.assert_array_equal(x, found[f"state/{path}"])
    again = run("again", "LOW", f"--init_from.path={base}", "--optimizer.learning_rate.peak=0.",
                f"--init_from.more={tmp_path / 'adapters.safetensors'}")
    out = capfd.readouterr().out
    assert f"2 arrays taken, 0 fresh, 2 unused, 4 of {tmp_path / 'adapters.safetensors'}" in out
    for path, x in small.items():
        np.testing.assert_array_equal(x, arrays(again / "checkpoints", 3)[f"state/{path}"])
    whole = export(low, "whole.safetensors")
    assert sorted(whole) == ["dense1.bias", "dense1.weight", "head.bias", "head.weight"]
    a, b = (small[f"params/lora/dense1/kernel/{x}"] for x in "ab")
    np.testing.assert_allclose(whole["dense1.weight"].T, found["state/frozen/dense1/kernel"]
                               + 4 * (a @ b), rtol=1e-4, atol=1e-6)
    for options, message in (
            ((f"--experiment={tmp_path / 'base.py'}", f"--init_from.path={base}",
              f"--init_from.more={tmp_path / 'adapters.safetensors'}"),
             "params/lora/dense1/kernel/a of .* is no parameter here"),
            ((f"--experiment={tmp_path / 'low.py'}", f"--init_from.path={base}", "--task.rank=3",
              f"--init_from.more={tmp_path / 'adapters.safetensors'}"),
             r"kernel/a is \[3072, 2\] in .*, and \[3072, 3\] here"),
            (("export", f"--experiment={tmp_path / 'low.py'}", f"--workdir={low}",
              "--format=safetensors", "--only=lorra/.*"),
             "--only: 'lorra/.*' matches no parameter"),
            (("export", f"--experiment={tmp_path / 'low.py'}", f"--workdir={low}",
              "--only=lora/.*"), "--only=lora/.*: goes with --format=safetensors")):
        assert cli.main([*options, *(() if options[0] == "export"
                                     else (f"--workdir={tmp_path / 'x'}",))]) == 2
        assert re.search(message, capfd.readouterr().err)
