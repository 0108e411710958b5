"""Attacks against closed forms on linear models; training against them; accuracy under them."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.checks.subject import Subject
from jaxdl.data.digits import Digits
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Constant
from jaxdl.parallel import arrange
from jaxdl.tasks.adversarial import TRADES, AdversarialTraining, Attack, RobustAccuracy, kl
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.sharpness import SAM
from tests.tiny import state_of

LINEAR = Classification(model=MLP(widths=(), classes=2))
INNER = Classification(model=MLP(widths=(6,), classes=3))
X = 0.2 + 0.6 * jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
BATCH = {"image": X, "label": jnp.array([0, 1, 1, 0, 1]), "mask": jnp.array([1., 1., 1., 1., 0.]),
         "index": jnp.arange(5)}
KEYS = jax.random.split(jax.random.key(1), 5)
TX = optax.sgd(0.1)


def linear() -> tuple[Any, np.ndarray]:
    """(variables, the gradient's direction w1 - w0 by pixel) of a linear model of two classes:
    its loss of class 0 is softplus(x (w1 - w0) + b), which rises along it."""
    state = LINEAR.init(jax.random.key(2), BATCH, TX)
    kernel = np.asarray(state.params["head"]["kernel"])
    return {"params": state.params}, (kernel[:, 1] - kernel[:, 0]).reshape(4, 4, 1)


def loss_of(variables: Any) -> Any:
    return lambda x: LINEAR.loss(variables, {**BATCH, "image": x, "mask": jnp.ones(5)},
                                 jax.random.key(0), train=False)[0].total


@pytest.mark.parametrize("random", [False, True])
def test_linf_on_a_linear_model_is_the_corner_of_the_box(random: bool) -> None:
    variables, w = linear()
    sign = np.where(np.asarray(BATCH["label"]) == 0, 1, -1).reshape(-1, 1, 1, 1)
    expected = np.asarray(X) + 0.1 * sign * np.sign(w)
    fgsm = Attack(radius=0.1, step=0.1, steps=1, random=False)
    pgd = Attack(radius=0.1, step=0.04, steps=8, random=random)
    for attack in (fgsm, pgd):
        found = jax.jit(lambda x, a=attack: a(loss_of(variables), x, KEYS))(X)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    bounded = dataclasses.replace(pgd, low=0.25, high=0.75)
    found = jax.jit(lambda: bounded(loss_of(variables), jnp.clip(X, 0.25, 0.75), KEYS))()
    np.testing.assert_allclose(found, np.clip(np.clip(X, 0.25, 0.75) + 0.1 * sign * np.sign(w),
                                              0.25, 0.75), atol=1e-6)


@pytest.mark.parametrize("random", [False, True])
def test_l2_on_a_linear_model_is_along_its_weights(random: bool) -> None:
    variables, w = linear()
    sign = np.where(np.asarray(BATCH["label"]) == 0, 1, -1).reshape(-1, 1, 1, 1)
    attack = Attack(norm="l2", radius=0.3, step=0.2, steps=30, random=random, low=-9., high=9.)
    found = jax.jit(lambda: attack(loss_of(variables), X, KEYS))()
    np.testing.assert_allclose(found, X + 0.3 * sign * w / np.linalg.norm(w), atol=2e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_lies_in_the_ball_and_goes_with_the_example(norm: Any) -> None:
    attack = Attack(norm=norm, radius=0.2, step=0.0, steps=1)
    found = np.asarray(attack(lambda x: x.sum(), X, KEYS))
    apart = (found - X).reshape(5, -1)
    size = np.abs(apart).max(-1) if norm == "linf" else np.linalg.norm(apart, axis=-1)
    assert (size <= 0.2 + 1e-6).all() and (size > 0.05).all() and len(np.unique(size)) == 5
    turned = attack(lambda x: x.sum(), X[::-1], KEYS[::-1])
    np.testing.assert_array_equal(turned[::-1], found)


def test_training_against_an_attack_is_training_on_what_it_finds() -> None:
    attack = Attack(radius=0.1, step=0.05, steps=3)
    task = AdversarialTraining(task=INNER, attack=attack)
    state = state_of(task, BATCH)
    key = jax.random.key(7)

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def of(params: Any, batch: Any, task: Any, train: bool) -> Any:
        mean, _ = task.loss({"params": params}, batch, key, train=train)
        return mean.total / mean.count

    # The attack again, with the keys that the task gives it.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), BATCH["index"])
    found = attack(lambda x: 4 * of(state.params, {**BATCH, "image": x}, INNER, False), X, keys)
    given = {**BATCH, "image": found}
    a, b = (jax.value_and_grad(of)(state.params, *x, True) for x in ((BATCH, task), (given, INNER)))
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-6)
    assert of(state.params, BATCH, task, True) > of(state.params, BATCH, INNER, True)
    assert of(state.params, BATCH, task, False) == of(state.params, BATCH, INNER, False)


def test_trades_adds_the_divergence_under_attack() -> None:
    task = TRADES(task=INNER, attack=Attack(radius=0.1, step=0.05, steps=3, random=False), beta=2.0)
    state = state_of(task, BATCH)
    variables = {"params": state.params}
    (mean, aux), (plain, _) = jax.jit(lambda: [
        t.loss(variables, BATCH, jax.random.key(0), train=True) for t in (task, INNER)])()
    np.testing.assert_allclose(mean.total, plain.total + 2 * aux.metrics["divergence"].total,
                               rtol=1e-5)
    # Larger than of noise of the same size.
    noise = 0.1 * jnp.sign(jax.random.normal(jax.random.key(4), X.shape))
    p, q = (INNER.model.apply(variables, x, train=False) for x in (X, X + noise))
    assert aux.metrics["divergence"].value() > 1.5 * kl(p, q)[:4].mean() > 0
    reference = (np.exp(p) / np.exp(p).sum(-1, keepdims=True) * (
        jax.nn.log_softmax(p) - jax.nn.log_softmax(q))).sum(-1)
    np.testing.assert_allclose(kl(p, q), reference, rtol=1e-4, atol=1e-7)


def test_accuracy_under_attack() -> None:
    step = jax.jit(lambda state: LINEAR.step(state, BATCH, TX)[0])
    state = jax.jit(lambda: LINEAR.init(jax.random.key(2), BATCH, TX))()
    for _ in range(60):
        state = step(state)
    kernel = np.asarray(state.params["head"]["kernel"])
    w = kernel[:, 1] - kernel[:, 0]
    margin = np.asarray(X).reshape(5, -1) @ w + float(np.diff(state.params["head"]["bias"])[0])
    signed = np.where(np.asarray(BATCH["label"]) == 1, margin, -margin)[:4]
    radius = float(np.median(signed / np.abs(w).sum()))  # half of them are nearer to the border
    evaluator = RobustAccuracy(split="test", every=1, attack=Attack(
        radius=radius, step=radius, steps=3, low=-9., high=9.))
    measure = jax.jit(lambda batch: evaluator.measure(LINEAR, state, batch))
    found = measure(BATCH)
    assert found["accuracy"].value() == (signed > radius * np.abs(w).sum()).mean()
    assert jax.jit(LINEAR.evaluate)(state, BATCH)["accuracy"].value() == (signed > 0).mean()
    order = jnp.array([4, 2, 0, 1, 3])
    other = measure(jax.tree.map(lambda x: x[order], BATCH))
    chex.assert_trees_all_close(found, other, rtol=1e-6)


def test_trades_stays_in_the_ball_wherever_an_example_lies(
        monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    attack = Attack.__call__

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        seen.append((options["start"], found := attack(self, *args, **options)))
        return found

    monkeypatch.setattr(Attack, "__call__", watched)
    task = TRADES(task=INNER, attack=Attack(radius=0.01, step=0.01, steps=2, random=False))
    variables = {"params": state_of(task, BATCH).params}
    order = jnp.array([4, 2, 0, 1, 3])
    for rows in (jnp.arange(5), order):
        batch = jax.tree.map(lambda x, rows=rows: x[rows], BATCH)
        task.loss(variables, batch, jax.random.key(0), train=True)
        apart = jnp.abs(seen[-1][1] - batch["image"])[batch["mask"] > 0]
        assert 0.005 < apart.max() <= 0.01 + 1e-6
    chex.assert_trees_all_equal(seen[0][0][order], seen[1][0])  # the noise that it begins with


def test_an_attack_on_normalised_images_is_refused_and_checked() -> None:
    for data, verdict in ((Digits(size=8), "FAIL"), (Digits(size=8, mean=(0.,), std=(1.,)),
                                                     "pass")):
        task = AdversarialTraining(task=Classification(model=MLP(widths=(), classes=10)))
        experiment = Experiment(task=task, data=data, steps=2, batch_size=16,
                                optimizer=SGD(learning_rate=Constant(peak=1.)))
        subject = Subject(experiment)
        finding = task.checks()["attack_range"](subject)
        assert finding.verdict == verdict, finding
        context: Any = Context(name="attacked", step=0, source=data.open, batch_size=64,
                               devices=arrange(Mesh(data=1)))
        state = subject.fresh
        if verdict == "pass":
            assert RobustAccuracy(attack=FEW)(task, state, context)["accuracy"] >= 0
            continue
        with pytest.raises(UserError, match=r"evals\.attacked\.attack: works on pixels from"):
            RobustAccuracy(attack=FEW)(task, state, context)


FEW = Attack(steps=2)


@pytest.mark.parametrize("task", [
    AdversarialTraining(task=SAM(task=INNER), attack=FEW),
    SAM(task=AdversarialTraining(task=INNER, attack=FEW)),
    SWA(task=TRADES(task=INNER, attack=FEW), start=1),
    TRADES(task=INNER, attack=FEW, ema=0.9, accumulate=2),
    SAM(task=TRADES(task=INNER, attack=FEW), freeze=("dense1/.*",))], ids=range(5))
def test_they_compose(task: Any) -> None:
    batch = jax.tree.map(lambda x: x[:4], BATCH)
    masked = {**batch, "image": batch["image"].at[3].set(jnp.nan),
              "mask": jnp.array([1., 1., 1., 0.])}
    state = first = task.init(jax.random.key(1), masked, TX)
    step = jax.jit(lambda state: task.step(state, masked, TX))
    for _ in range(3):
        state, metrics = step(state)
    chex.assert_tree_all_finite(state.params)
    assert np.isfinite(metrics["loss"].value())
    chex.assert_trees_all_equal(first.frozen, state.frozen)
    assert config.from_json(config.to_json(task)) == task
