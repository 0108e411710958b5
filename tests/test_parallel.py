"""Meshes and rules: what is split, what is copied, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdl import parallel
from jaxdl.errors import UserError
from jaxdl.experiment import Mesh, Rule
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam
from jaxdl.task import named
from jaxdl.tasks.classification import Classification
from jaxdl.train import Program
from tests.test_train import arrays, fit, metrics
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
    (Mesh(data=16), (), "mesh.data=16, mesh.fsdp=1, mesh.tensor=1 do not fit the 8 cpu device"),
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


def test_a_run_continues_on_another_number_of_devices(tmp_path: Path) -> None:
    fit(tmp_path / "one", shorter(steps=20))
    fit(tmp_path / "many", shorter(steps=10, mesh=Mesh(data=8)))
    fit(tmp_path / "many", dataclasses.replace(shorter(steps=20), mesh=Mesh(data=1)),
        accept_changes=True)
    one, many = arrays(tmp_path / "one"), arrays(tmp_path / "many")
    assert many["state/seen"] == one["state/seen"]
    assert [x["step"] for x in metrics(tmp_path / "many")][-1] == 20
