"""Optimizers against Optax's own, schedules against their formulas, and floats as data."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.errors import UserError
from jaxdl.optimizer import (
    LAMB,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Constant,
    Cosine,
    InverseTime,
    Linear,
    Lion,
    Muon,
    Optimizer,
    PathRule,
    RMSProp,
    StepDecay,
)
from jaxdl.task import Aux, LossTask, Mean

RATE = Constant(peak=0.01)
PARAMS = {"dense": {"kernel": jnp.linspace(-1, 1, 6).reshape(3, 2), "bias": jnp.array([.5, -.5])},
          "conv": {"kernel": jnp.linspace(-.5, .7, 24).reshape(2, 2, 2, 3)}}


def gradients(step: int) -> Any:
    return jax.tree.map(lambda x: jnp.sin(x * (step + 1) + step), PARAMS)


def run(tx: optax.GradientTransformation, steps: int = 5) -> Any:
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(steps):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(("ours", "theirs"), [
    (SGD(learning_rate=RATE), optax.sgd(.01)),
    (SGD(learning_rate=RATE, momentum=.9), optax.sgd(.01, .9)),
    (SGD(learning_rate=RATE, momentum=.9, nesterov=True), optax.sgd(.01, .9, True)),
    (Adagrad(learning_rate=RATE), optax.adagrad(.01)),
    (RMSProp(learning_rate=RATE), optax.rmsprop(.01, eps_in_sqrt=False)),
    (RMSProp(learning_rate=RATE, momentum=.5),
     optax.chain(optax.scale_by_rms(eps_in_sqrt=False), optax.trace(.5), optax.scale(-.01))),
    (Adam(learning_rate=RATE), optax.adam(.01)),
    (Adam(learning_rate=RATE, nesterov=True), optax.nadam(.01)),
    (AdamW(learning_rate=RATE, weight_decay=.1), optax.adamw(.01, weight_decay=.1)),
    (Lion(learning_rate=RATE, weight_decay=.1), optax.lion(.01, weight_decay=.1)),
    (LAMB(learning_rate=RATE, weight_decay=.1), optax.lamb(.01, weight_decay=.1)),
    (Adafactor(learning_rate=RATE, factored_from=2),
     optax.adafactor(.01, min_dim_size_to_factor=2)),
    (Adam(learning_rate=RATE, clip=.3),
     optax.chain(optax.clip_by_global_norm(.3), optax.adam(.01))),
    (SGD(learning_rate=RATE, momentum=.9, l2=.2),
     optax.chain(optax.add_decayed_weights(.2), optax.sgd(.01, .9))),
    (SGD(learning_rate=RATE, momentum=.9, weight_decay=.2),
     optax.chain(optax.trace(.9), optax.add_decayed_weights(.2), optax.scale(-.01))),
], ids=lambda x: type(x).__name__ if isinstance(x, Optimizer) else "")
def test_an_optimizer_is_optaxs(ours: Optimizer, theirs: optax.GradientTransformation) -> None:
    chex.assert_trees_all_close(run(ours.build(5)), run(theirs), rtol=2e-6, atol=1e-7)


def test_muon_is_optaxs_with_convolutions_as_matrices() -> None:
    from optax.contrib import MuonDimensionNumbers, muon

    dims = {"dense": {"kernel": MuonDimensionNumbers((0,), 1), "bias": None},
            "conv": {"kernel": MuonDimensionNumbers((0, 1, 2), 3)}}
    theirs = muon(.01, adam_b2=.95, consistent_rms=.2, muon_weight_dimension_numbers=dims)
    chex.assert_trees_all_close(run(Muon(learning_rate=RATE).build(5)), run(theirs), rtol=1e-5)
    adam = Muon(learning_rate=RATE, adam=("conv/.*",)).build(5)
    expected = run(optax.adam(.01, b2=.95, nesterov=True))["conv"]
    chex.assert_trees_all_close(run(adam)["conv"], expected, rtol=1e-5)


def test_l2_and_decoupled_decay_differ() -> None:
    l2 = run(Adam(learning_rate=RATE, l2=.1).build(5))
    decoupled = run(Adam(learning_rate=RATE, weight_decay=.1).build(5))
    assert float(jnp.abs(l2["dense"]["kernel"] - decoupled["dense"]["kernel"]).max()) > 1e-4
    a = run(SGD(learning_rate=RATE, l2=.1).build(5))
    chex.assert_trees_all_close(a, run(SGD(learning_rate=RATE, weight_decay=.1).build(5)))


def test_rules_by_path() -> None:
    rules = (PathRule(path=".*/bias", weight_decay=0.0),
             PathRule(path="conv/.*", learning_rate=0.0))
    tx = SGD(learning_rate=RATE, weight_decay=.5, rules=rules).build(5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, {
        "dense": {"kernel": -.01 * .5 * PARAMS["dense"]["kernel"], "bias": jnp.zeros(2)},
        "conv": {"kernel": jnp.zeros((2, 2, 2, 3))}})
    bad = SGD(rules=(PathRule(path="desne/.*"),)).build(5)
    with pytest.raises(UserError, match=r"optimizer.rules: 'desne/.\*' matches no trained "
                                        r"parameter. Did you mean 'dense/bias'\?"):
        bad.update(PARAMS, bad.init(PARAMS), PARAMS)


@pytest.mark.parametrize(("schedule", "formula"), [
    (Constant(peak=.1), lambda t: .1),
    (StepDecay(peak=.1, at=(.5, .75), factor=.1), lambda t: .1 * .1 ** ((t >= .5) + (t >= .75))),
    (InverseTime(peak=.1, rate=3.0), lambda t: .1 / (1 + 3 * t)),
    (Cosine(peak=.1), lambda t: .05 * (1 + np.cos(np.pi * t))),
    (Cosine(peak=.1, end=.2), lambda t: .02 + .08 * .5 * (1 + np.cos(np.pi * t))),
    (Linear(peak=.1, end=.5), lambda t: .1 - .05 * t),
], ids=lambda x: type(x).__name__)
def test_a_schedule_is_its_formula(schedule: Any, formula: Any) -> None:
    steps = 40
    for step in (0, 7, 20, 29, 30, 39, 40):
        assert float(schedule(step, steps)) == pytest.approx(
            formula(step / steps), rel=1e-5, abs=1e-8)
        assert float(schedule(step * 10, steps * 10)) == pytest.approx(
            float(schedule(step, steps)), rel=1e-5), "the same recipe, longer"
    warm = dataclasses.replace(schedule, warmup=.25)
    for step in range(10):
        whole = float(warm.peak * warm.decay(jnp.float32(step / steps)))
        assert float(warm(step, steps)) == pytest.approx(whole * (step + 1) / 10, rel=1e-5)
    if isinstance(schedule, (Cosine, Linear)):
        assert float(warm(9, steps)) == pytest.approx(.1), "the peak is reached, then it decays"
        assert float(warm(40, steps)) == pytest.approx(float(schedule(40, steps)), abs=1e-8)


OPTIMIZERS = [SGD(momentum=.9, nesterov=True), Adagrad(), RMSProp(momentum=.9), Adam(), AdamW(),
              Adafactor(factored_from=2), Lion(), Muon(), LAMB()]
SCHEDULES = [Constant(), StepDecay(), InverseTime(), Cosine(), Linear()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic(LossTask):
    """Half the squared distance of all parameters from 1, for each of the examples."""

    weight: float = 0.5

    def loss(self, variables: dict[str, Any], batch: Any, key: jax.Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if not variables:
            variables["params"] = PARAMS
        square = sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(variables["params"]))
        return Mean.of(jnp.full(batch["mask"].shape, self.weight * square), batch["mask"]), Aux()


@pytest.mark.parametrize(("optimizer", "schedule"), [
    *((o, Cosine()) for o in OPTIMIZERS), *((AdamW(), s) for s in SCHEDULES if s != Cosine())],
    ids=lambda x: type(x).__name__)
def test_every_float_may_be_traced(optimizer: Optimizer, schedule: Any) -> None:
    """A whole step is traced with each float leaf as data, one by one, then with all (rule 1)."""
    tree = {"task": Quadratic(ema=0.9), "optimizer": dataclasses.replace(
        optimizer, learning_rate=schedule, clip=1.0, l2=1e-3, weight_decay=1e-2,
        rules=(PathRule(path=".*/bias", learning_rate=2.0, weight_decay=0.5),))}
    floats = [p for p, leaf in config.leaves(tree) if type(leaf.value) is float]
    assert {"task.ema", "task.weight", "optimizer.clip", "optimizer.learning_rate.peak"} <= {
        *floats}
    batch = {"mask": jnp.ones(4)}

    def step(tree: Any) -> Any:
        tx = tree["optimizer"].build(10)
        state = tree["task"].init(jax.random.key(0), batch, tx)
        return tree["task"].step(state, batch, tx)[0].params

    expected = jax.jit(lambda: step(tree))()
    for path in floats:
        traced = jax.eval_shape(lambda x, p=path: step(config.replace(tree, {p: x})),
                                config.get(tree, path))
        chex.assert_trees_all_equal_shapes_and_dtypes(traced, expected)
    at_once = jax.jit(lambda xs: step(config.replace(tree, dict(zip(floats, xs, strict=True)))))
    chex.assert_trees_all_close(at_once([config.get(tree, p) for p in floats]), expected,
                                rtol=1e-4, atol=1e-6)


def test_the_boundaries_of_a_step_decay_may_be_traced() -> None:
    rate = jax.jit(lambda at: StepDecay(peak=1.0, at=(at, 0.75))(jnp.int32(5), 10))
    assert [float(rate(x)) for x in (0.2, 0.6)] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize("optimizer", [
    SGD(momentum=0.9, momentum_dtype="bfloat16"), Adam(momentum_dtype="bfloat16"),
    Lion(momentum_dtype="bfloat16"), Muon(momentum_dtype="bfloat16")])
def test_a_momentum_may_be_stored_in_bfloat16(optimizer: Optimizer) -> None:
    """Half the bytes; the update is that of float32 but for the rounding of what is stored."""
    params = {"kernel": jnp.linspace(-1., 1., 32).reshape(8, 4), "bias": jnp.ones(4)}
    grads = {"kernel": jax.random.normal(jax.random.key(0), (8, 4)), "bias": jnp.arange(1., 5.)}

    def two_steps(optimizer: Optimizer) -> tuple[Any, Any]:
        tx, updates = optimizer.build(10), None
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
        return updates, state

    updates, state = two_steps(optimizer)
    exact, full = two_steps(dataclasses.replace(optimizer, momentum_dtype=None))  # type: ignore
    chex.assert_trees_all_close(updates, exact, rtol=0.03, atol=1e-5)
    chex.assert_trees_all_equal_dtypes(updates, params)
    stored = [x.dtype for x in jax.tree.leaves(state)]
    assert stored.count(jnp.bfloat16) == 2
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(full))


def test_muon_takes_each_of_stacked_layers_for_itself() -> None:
    """As with a model's scan=True: updates are those of the layers one by one."""
    random = np.random.default_rng(0)
    layers = [{"dense": {"kernel": jnp.asarray(random.normal(size=(4, 6)), jnp.float32)},
               "norm": {"scale": jnp.asarray(random.normal(size=4), jnp.float32)}}
              for _ in range(3)]
    stacked = {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    tx = Muon(learning_rate=Constant(peak=0.1)).build(5)

    def update(params: Any) -> Any:
        return tx.update(jax.tree.map(jnp.cos, params), tx.init(params), params)[0]

    alone = [update(layer) for layer in layers]
    chex.assert_trees_all_close(update(stacked)["blocks"], jax.tree.map(
        lambda *x: jnp.stack(x), *alone), rtol=1e-4, atol=1e-6)
