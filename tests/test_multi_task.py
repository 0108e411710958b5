"""Several tasks over a shared trunk: what is shared, and how the losses are balanced."""

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
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.task import named
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.multi_task import MultiTask
from jaxdl.tasks.sharpness import SAM

BATCH = {"image": jax.random.normal(jax.random.key(0), (6, 4, 4, 1)),
         "label": jnp.array([0, 1, 2, 1, 0, 2]), "odd": jnp.array([0, 1, 0, 1, 1, 0]),
         "mask": jnp.array([1., 1., 1., 1., 1., 0.]), "index": jnp.arange(6)}
MODEL = MLP(widths=(5, 4), classes=3)
TASK = MultiTask(tasks={"digit": Classification(model=MODEL),
                        "parity": Classification(model=MODEL.clone(classes=2))},
                 shared=("dense1/.*",), fields={"parity": {"label": "odd"}},
                 weights={"parity": 0.5})
TX = optax.sgd(0.1)


def trained(task: Any, steps: int, batch: Any = BATCH) -> list[Any]:
    states = [jax.jit(lambda: task.init(jax.random.key(1), batch, TX))()]
    step = jax.jit(lambda state: task.step(state, batch, TX)[0])
    for _ in range(steps):
        states.append(step(states[-1]))
    return states


def gradients(state: Any, name: str, batch: Any = BATCH) -> dict[str, np.ndarray]:
    """Of the mean loss of one task, by path in the whole, zero where it does not depend."""
    def loss(params: Any) -> Any:
        own = {**params["shared"], **params[name]}
        seen = batch if name == "digit" else {**batch, "label": batch["odd"]}
        mean, _ = TASK.tasks[name].loss({"params": own}, seen, jax.random.key(0), train=True)
        return mean.total / mean.count

    params = {k: x for k, x in state.params.items() if k != "balance"}
    return {p: np.asarray(g, np.float64) for p, g in named(jax.jit(jax.grad(loss))(params)).items()}


def stepped(state: Any, gradient: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {p: np.asarray(x) - 0.1 * gradient[p] for p, x in named(state.params).items()
            if p in gradient}


def assert_stepped(before: Any, after: Any, gradient: dict[str, np.ndarray]) -> None:
    found = named(after.params)
    for path, x in stepped(before, gradient).items():
        np.testing.assert_allclose(found[path], x, rtol=1e-4, atol=1e-6, err_msg=path)


def test_the_trunk_is_shared_and_the_weighted_losses_are_added() -> None:
    before, after = trained(TASK, 1)
    assert sorted(named(before.params)) == [f"{x}/{y}" for x, layers in (
        ("digit", ("dense2", "head")), ("parity", ("dense2", "head")), ("shared", ("dense1",)))
        for y in (f"{layer}/{leaf}" for layer in layers for leaf in ("bias", "kernel"))]
    digit, parity = gradients(before, "digit"), gradients(before, "parity")
    assert_stepped(before, after, {p: digit[p] + 0.5 * parity[p] for p in digit})
    found = jax.jit(TASK.evaluate)(after, BATCH)
    assert found.keys() == {"loss", "digit_loss", "digit_accuracy", "parity_loss",
                            "parity_accuracy"}
    total = found["digit_loss"].value() + 0.5 * found["parity_loss"].value()
    np.testing.assert_allclose(found["loss"].value(), total, rtol=1e-5)
    logits = TASK.logits(after, BATCH)
    assert {n: x.shape for n, x in logits.items()} == {"digit": (6, 3), "parity": (6, 2)}
    own = {**after.params["shared"], **after.params["parity"]}
    chex.assert_trees_all_close(logits["parity"], MODEL.clone(classes=2).apply(
        {"params": own}, BATCH["image"], train=False), rtol=1e-5)
    assert TASK.target_fields == ("label", "odd")


def test_a_task_may_have_a_mask_of_its_own() -> None:
    task = dataclasses.replace(TASK, fields={"parity": {"label": "odd", "mask": "labelled"}})
    labelled = jnp.array([1., 0., 0., 1., 0., 0.])
    before, after = trained(task, 1, {**BATCH, "labelled": labelled})
    digit = gradients(before, "digit")
    parity = gradients(before, "parity", {**BATCH, "mask": labelled})
    assert_stepped(before, after, {p: digit[p] + 0.5 * parity[p] for p in digit})


def test_uncertainty_weights_the_losses() -> None:
    task = dataclasses.replace(TASK, balance="uncertainty", weights={})
    before, middle, after = trained(task, 2)
    digit, parity = gradients(before, "digit"), gradients(before, "parity")
    assert_stepped(before, middle, {p: digit[p] + parity[p] for p in digit})  # s = 0
    found = jax.jit(TASK.evaluate)(before, BATCH)
    losses = {n: float(found[f"{n}_loss"].value()) for n in TASK.tasks}
    for name, loss in losses.items():  # d/ds of exp(-s) L + s / 2, at s = 0
        np.testing.assert_allclose(middle.params["balance"][name], -0.1 * (0.5 - loss), rtol=1e-4)
    s = {n: float(x) for n, x in middle.params["balance"].items()}
    digit, parity = gradients(middle, "digit"), gradients(middle, "parity")
    assert_stepped(middle, after, {p: np.exp(-s["digit"]) * digit[p]
                                   + np.exp(-s["parity"]) * parity[p] for p in digit})


def test_pcgrad_removes_what_conflicts() -> None:
    """Parities that contradict the digits' classes make the gradients conflict."""
    batch = {**BATCH, "odd": BATCH["label"] % 2}
    twin = dataclasses.replace(TASK, balance="pcgrad", weights={"digit": 1., "parity": 3.})
    start = jax.jit(lambda key: twin.init(key, batch, TX))
    for seed in range(40):
        state = start(jax.random.key(seed))
        digit, parity = gradients(state, "digit", batch), gradients(state, "parity", batch)
        dot = sum((digit[p] * parity[p]).sum() for p in digit)
        if dot < -1e-3:
            break
    else:
        raise AssertionError("no conflict among 40 initial values")
    parity = {p: 3 * g for p, g in parity.items()}
    dot *= 3
    norms = [sum((g[p] ** 2).sum() for p in g) for g in (digit, parity)]
    expected = {p: digit[p] - dot / norms[1] * parity[p] + parity[p] - dot / norms[0] * digit[p]
                for p in digit}
    after, metrics = jax.jit(lambda s: twin.step(s, batch, TX))(state)
    assert_stepped(state, after, expected)
    fixed = dataclasses.replace(twin, balance="fixed")
    plain = jax.jit(lambda s: fixed.step(s, batch, TX))(state)[1]
    np.testing.assert_allclose(metrics["loss"].value(), plain["loss"].value(), rtol=1e-6)


def test_pcgrad_leaves_what_agrees() -> None:
    """The same task twice."""
    twice = dataclasses.replace(TASK, tasks={"a": TASK.tasks["digit"], "b": TASK.tasks["digit"]},
                                shared=(".*",), fields={}, weights={})
    fixed, pcgrad = (trained(dataclasses.replace(twice, balance=x), 2)[-1]
                     for x in ("fixed", "pcgrad"))
    chex.assert_trees_all_close(fixed.params, pcgrad.params, rtol=1e-4, atol=1e-6)


def test_gradnorm_moves_the_weights_towards_equal_norms() -> None:
    task = dataclasses.replace(TASK, balance="gradnorm", alpha=1.5, weights={})
    before, middle, after = trained(task, 2)
    digit, parity = gradients(before, "digit"), gradients(before, "parity")
    assert_stepped(before, middle, {p: digit[p] + parity[p] for p in digit})
    norms = np.array([np.sqrt(sum((g[p] ** 2).sum() for p in g if p.startswith("shared")))
                      for g in (digit, parity)])
    # At the first step all speeds are one: the goal is the mean norm; w_i = 2 softmax(v)_i = 1.
    slope = np.sign(norms - norms.mean()) * norms  # of the sum of |w_i n_i - goal|, by w_i
    expected = -0.1 * (slope - slope.mean())  # d w_i / d v_j = w_i (1[i = j] - w_j / 2)
    v = [float(middle.params["balance"][n]) for n in TASK.tasks]
    np.testing.assert_allclose(v, expected, rtol=1e-3, atol=1e-6)
    first = jax.jit(TASK.evaluate)(before, BATCH)
    for name in TASK.tasks:  # the loss of the first step is kept
        np.testing.assert_allclose(after.mutable["balance"][name], first[f"{name}_loss"].value(),
                                   rtol=1e-5)


def test_statistics_are_shared_and_it_composes() -> None:
    model = CNN(channels=(2, 3), dense=(), classes=3, batch_norm=True)
    task = MultiTask(tasks={"digit": SAM(task=Classification(model=model)),
                            "parity": Classification(model=model.clone(classes=2))},
                     shared=("(conv|norm).*",), fields={"parity": {"label": "odd"}},
                     balance="gradnorm", ema=0.9, accumulate=2, freeze=("shared/conv1/.*",))
    first, last = (states := trained(task, 3))[0], states[-1]
    assert list(first.mutable["batch_stats"]) == ["shared"]
    assert list(first.frozen) == ["shared"]
    chex.assert_trees_all_equal(first.frozen, last.frozen)
    chex.assert_tree_all_finite(last.params)
    assert config.from_json(config.to_json(task)) == task
    around = SAM(task=TASK)
    assert np.isfinite(jax.jit(around.evaluate)(trained(around, 2)[-1], BATCH)["loss"].value())


@pytest.mark.parametrize("changes,message", [
    ({"tasks": {"digit": TASK.tasks["digit"]}}, "tasks: two at least"),
    ({"weights": {"partiy": 1.}}, "weights: no task 'partiy'. Did you mean 'parity'"),
    ({"balance": "gradnorm"}, "weights: balance=gradnorm finds its own"),
    ({"shared": ("dense3/.*",)}, "shared: 'dense3/.*' matches no parameter"),
    ({"shared": (".*",)}, r"shared: head/bias is \(2,\) in 'parity' and \(3,\) before"),
    ({"fields": {"parity": {"label": "od"}}}, "the batch has no 'od'. Did you mean 'odd'"),
    ({"tasks": {**TASK.tasks, "parity": dataclasses.replace(TASK.tasks["parity"], ema=0.5)}},
     "set ema in it, not in its task 'parity'")])
def test_mistakes(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained(dataclasses.replace(TASK, **changes), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalised(Classification):
    """With the sum of squares as a penalty."""

    def loss(self, variables: Any, batch: Any, key: Any, *, train: bool) -> Any:
        mean, aux = super().loss(variables, batch, key, train=train)
        squares = sum((x ** 2).sum() for x in jax.tree.leaves(variables["params"]))
        return mean, dataclasses.replace(aux, penalty=squares)


@pytest.mark.parametrize(("balance", "weight"), [("fixed", 0.25), ("pcgrad", 0.)])
def test_a_penalty_is_weighted_with_its_task(balance: Any, weight: float) -> None:
    penalised = Penalised(model=MODEL.clone(classes=2))
    task = dataclasses.replace(TASK, balance=balance, weights={"parity": weight},
                               tasks={**TASK.tasks, "parity": penalised})
    before, after = trained(task, 1)
    digit, parity = gradients(before, "digit"), gradients(before, "parity")
    squares = {p: 2 * np.asarray(x) * (not p.startswith("digit"))
               for p, x in named(before.params).items()}
    assert_stepped(before, after, {p: digit[p] + weight * (parity[p] + squares[p]) for p in digit})


def test_gradnorm_waits_for_a_first_example() -> None:
    """A task whose mask leaves out all of the first batch has no loss to begin from."""
    task = dataclasses.replace(TASK, balance="gradnorm", weights={},
                               fields={"parity": {"label": "odd", "mask": "labelled"}})
    batch = {**BATCH, "labelled": jnp.zeros(6)}
    # Not compiled: XLA takes x / x for one.
    state, metrics = task.step(task.init(jax.random.key(1), batch, TX), batch, TX)
    chex.assert_tree_all_finite((state.params, metrics))
    assert state.mutable["balance"]["parity"] == 0
