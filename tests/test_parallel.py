"""Meshes and rules: what is split, what is copied, and what is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdl import parallel
from jaxdl.data.source import assemble
from jaxdl.errors import UserError
from jaxdl.experiment import Mesh, Rule
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Adam, Constant
from jaxdl.task import named
from jaxdl.tasks.classification import Classification
from jaxdl.train import Program
from tests.test_train import arrays, fit
from tests.tiny import shorter

SHAPES = {"params": {"up": {"kernel": jax.ShapeDtypeStruct((64, 512), jnp.float32),
                            "bias": jax.ShapeDtypeStruct((512,), jnp.float32)}},
          "opt_state": ({"mu": {"up": {"kernel": jax.ShapeDtypeStruct((64, 512), jnp.float32)}}},)}


def specs(mesh: Mesh, rules: tuple[Rule, ...] = ()) -> dict[str, PartitionSpec]:
    shardings = parallel.arrange(mesh, rules).shardings(SHAPES)
    return {p: s.spec for p, s in named(shardings).items()}


def test_everything_is_copied_over_data() -> None:
    assert set(specs(Mesh()).values()) == {PartitionSpec()}


def test_fsdp_splits_large_arrays_and_their_statistics() -> None:
    found = specs(Mesh(fsdp=8))
    assert found["params/up/kernel"] == PartitionSpec(None, "fsdp")
    assert found["opt_state/0/mu/up/kernel"] == PartitionSpec(None, "fsdp")
    assert found["params/up/bias"] == PartitionSpec()


def test_a_rule_splits_what_it_matches() -> None:
    rules = (Rule(path="up/kernel", axes=(None, "tensor")),)
    found = specs(Mesh(tensor=2), rules)
    assert found["params/up/kernel"] == PartitionSpec(None, "tensor")
    assert found["opt_state/0/mu/up/kernel"] == PartitionSpec(None, "tensor")
    assert found["params/up/bias"] == PartitionSpec()


@pytest.mark.parametrize(("mesh", "rules", "message"), [
    (Mesh(), (Rule(path="down/kernel", axes=("tensor", None)),),
     "rules: 'down/kernel' matches no array of 2 dimensions."),
    (Mesh(data=1, tensor=3), (Rule(path="up/kernel", axes=(None, "tensor")),),
     "mesh.tensor=3 does not divide opt_state/0/mu/up/kernel of shape (64, 512) that rule "
     "'up/kernel' splits; the nearest that does: 2 or 4."),
    (Mesh(fsdp=3), (), "mesh.data=-1, mesh.fsdp=3, mesh.tensor=1 do not fit the 8 cpu "
     "device(s) here; mesh.fsdp times mesh.tensor may be 2 or 4."),
    (Mesh(data=16), (), "mesh.data=16, mesh.fsdp=1, mesh.tensor=1 do not fit the 8 cpu device(s) "
     "here; mesh.data may be at most 8."),
    (Mesh(data=4, fsdp=4), (), "mesh.data=4, mesh.fsdp=4, mesh.tensor=1 do not fit the 8 cpu "
     "device(s) here; mesh.data may be at most 2."),
    (Mesh(data=0), (), "mesh.data=0: expected -1 (all that are left) or at least 1."),
])
def test_what_does_not_fit_is_told(mesh: Mesh, rules: tuple[Rule, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        specs(mesh, rules)
    assert str(error.value).startswith(message)


def test_a_batch_that_does_not_divide_names_the_nearest() -> None:
    devices = parallel.arrange(Mesh(data=4, fsdp=2))
    with pytest.raises(UserError) as error:
        parallel.check_batch(100, devices)
    assert str(error.value) == ("batch_size=100 is not divisible by mesh.data=4 x mesh.fsdp=2 = 8; "
                                "the nearest that is: 96 or 104.")
    with pytest.raises(UserError, match=r"x task.accumulate=3 = 24; the nearest that is: 24\.$"):
        parallel.check_batch(8, devices, 3)


def test_the_state_is_born_split_and_stays_so() -> None:
    experiment = shorter(
        mesh=Mesh(data=2, fsdp=4), optimizer=Adam(),
        task=Classification(model=MLP(widths=(512,))))
    devices = parallel.arrange(experiment.mesh)
    program = Program(experiment, experiment.data.open("train"), devices)
    carry = program.init(program.knobs)
    inputs = program.plan(0, 1)[0]
    for _ in range(2):
        kernel: Any = carry.state.params["dense1"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (64, 128)
        mu: Any = carry.state.opt_state[0].mu["dense1"]["kernel"]
        assert mu.addressable_shards[0].data.shape == (64, 128)
        carry = program.advance(carry, [inputs])


@pytest.mark.parametrize("mesh", [Mesh(data=8), Mesh(data=2, fsdp=4), Mesh(data=4, tensor=2)])
def test_many_devices_compute_what_one_does(mesh: Mesh) -> None:
    """One step from the same state: same order, dropout and augmentation, gradients to rounding."""
    def one_step(mesh: Mesh) -> tuple[Any, Any]:
        experiment = shorter(mesh=mesh)
        program = Program(experiment, experiment.data.open("train"), parallel.arrange(mesh))
        carry = program.init(program.knobs)
        for i in range(2):
            carry = program.advance(carry, [program.plan(128 * i, 1)[0]])
        return jax.device_get(carry.state.params), jax.device_get(carry.window)

    expected, window = one_step(Mesh(data=1))
    found, again = one_step(mesh)
    assert again.means["accuracy"].total == window.means["accuracy"].total
    np.testing.assert_allclose(again.means["loss"].total, window.means["loss"].total, rtol=1e-5)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=2e-4)


def several_steps(experiment: Any, count: int) -> tuple[Any, Any]:
    """(state, window) after so many steps."""
    program = Program(experiment, experiment.data.open("train"),
                      parallel.arrange(experiment.mesh, experiment.rules))
    carry = program.init(program.knobs)
    for i in range(count):
        carry = program.advance(carry, [program.plan(128 * i, 1)[0]])
    return jax.device_get(carry.state), jax.device_get(carry.window)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pmap_computes_what_one_device_does(accumulate: int) -> None:
    """Dropout, augmentation and micro-batches included, where no statistic spans the batch."""
    task = dataclasses.replace(shorter().task, accumulate=accumulate,  # type: ignore[type-var]
                               model=MLP(widths=(32,), dropout=0.2))
    expected, window = several_steps(shorter(task=task), 3)
    found, again = several_steps(shorter(task=task, parallel="pmap", mesh=Mesh(data=8)), 3)
    assert (found.step, found.seen) == (expected.step, expected.seen) == (3, 3 * 128)
    assert again.means["accuracy"].total == window.means["accuracy"].total
    assert again.means["loss"].count == 3 * 128
    np.testing.assert_allclose(again.means["loss"].total, window.means["loss"].total, rtol=1e-5)
    np.testing.assert_allclose(again.last["grad_norm"], window.last["grad_norm"], rtol=1e-4)
    chex.assert_trees_all_close((found.params, found.ema), (expected.params, expected.ema),
                                rtol=1e-3, atol=2e-4)


def test_pmap_normalises_by_each_devices_part() -> None:
    """Against a reference on one device: the mean over parts of the batch of gradient and
    statistics."""
    experiment = shorter(
        task=Classification(model=MLP(widths=(32,), batch_norm=True)), parallel="pmap",
        mesh=Mesh(data=4), optimizer=SGD(learning_rate=Constant(peak=0.1)))
    task, source = experiment.task, experiment.data.open("train")
    program = Program(dataclasses.replace(experiment, parallel="jit", mesh=Mesh(data=1)), source,
                      parallel.arrange(Mesh(data=1)))
    start = program.init(program.knobs).state
    inputs = program.plan(0, 1)[0]
    key = jax.random.fold_in(jax.random.key(np.uint32(experiment.seed)), 1)
    batch = assemble(source, source.arrays, inputs, jax.random.fold_in(key, 0))

    def part(i: int) -> Any:
        rows = jax.tree.map(lambda x: x[32 * i:32 * (i + 1)], batch)
        variables = {"params": start.params, **start.mutable}

        def loss(params: Any) -> Any:
            mean, aux = task.loss({**variables, "params": params}, rows, key, train=True)
            return mean.value(), aux.mutable

        return jax.grad(loss, has_aux=True)(start.params)

    grads, mutable = jax.tree.map(lambda *x: sum(x) / 4, *map(part, range(4)))
    found, _ = several_steps(experiment, 1)
    chex.assert_trees_all_close(found.mutable, mutable, rtol=1e-5, atol=1e-6)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start.params, grads)
    chex.assert_trees_all_close(found.params, expected, rtol=1e-4, atol=1e-6)


def test_a_run_changes_between_jit_and_pmap(tmp_path: Path) -> None:
    constant = shorter(optimizer=Adam(learning_rate=Constant(peak=1e-3)), task=dataclasses.replace(
        shorter().task, model=MLP(widths=(32,), dropout=0.2)))  # type: ignore[type-var]

    def run(folder: str, steps: int, **changes: Any) -> dict[str, Any]:
        fit(tmp_path / folder, dataclasses.replace(constant, steps=steps, **changes),
            accept_changes=True)
        return arrays(tmp_path / folder)

    one = run("one", 20)
    run("both", 6, parallel="pmap", mesh=Mesh(data=8))
    run("both", 13)
    both = run("both", 20, parallel="pmap", mesh=Mesh(data=8))
    assert set(one) == set(both)
    assert both["state/seen"] == one["state/seen"]
    for path in (p for p in one if p.startswith(("state/params", "state/ema"))):
        np.testing.assert_allclose(both[path], one[path], rtol=1e-3, atol=2e-4, err_msg=path)


@pytest.mark.parametrize(("mesh", "rules", "culprit"), [
    (Mesh(data=4, fsdp=2), (), "mesh.fsdp=2"),
    (Mesh(), (Rule(path="kernel", axes=(None, "data")),), "rules.0")])
def test_pmap_splits_no_parameters(mesh: Mesh, rules: tuple[Rule, ...], culprit: str) -> None:
    with pytest.raises(UserError) as error:
        parallel.check_mode("pmap", parallel.arrange(mesh, rules))
    assert str(error.value) == ("parallel=pmap copies the parameters to every device, so "
                                f"{culprit} needs parallel=jit.")


def test_fsdp_keeps_an_eighth_on_each_device() -> None:
    """All but the arrays too small to split."""
    experiment = shorter(mesh=Mesh(data=1, fsdp=8),
                         task=Classification(model=MLP(widths=(512, 512))))
    program = Program(experiment, experiment.data.open("train"), parallel.arrange(experiment.mesh))
    state = program.init(program.knobs).state
    large = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.size >= 1 << 14]
    assert len(large) == 6  # two kernels, each with Adam's two moments
    for x in large:
        assert x.addressable_shards[0].data.nbytes * 8 == x.nbytes


def test_every_mesh_computes_the_same_in_float64() -> None:
    """Of eight devices, under jit and pmap, with dropout and augmentation: what rounding hid would
    show here."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.meshes", "20"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent, env={**os.environ, "JAX_ENABLE_X64": "1"})
    found = {k: v for line in done.stdout.splitlines() for k, v in json.loads(line).items()}
    assert {name: len(losses) for name, losses in found.items()} == {
        "mlp": 4, "transformer": 4, "rnn": 2, "resnet": 2}
    for name, losses in found.items():
        for mesh, several in losses.items():
            np.testing.assert_allclose(several, losses["one"], rtol=1e-9, err_msg=f"{name} {mesh}")
        assert losses["one"][-2] != losses["one"][0]


def test_float64_needs_to_be_enabled() -> None:
    task = dataclasses.replace(shorter().task, compute_dtype="float64")  # type: ignore[type-var]
    with pytest.raises(UserError) as error:
        several_steps(shorter(task=task), 1)
    assert str(error.value) == (
        "task.compute_dtype=float64 needs JAX_ENABLE_X64=1 in the environment.")
