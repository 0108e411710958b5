"""Tasks for batches of which a part has labels, against the formulas written in NumPy."""

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
from jaxdl.data.source import transformed
from jaxdl.data.transforms import Flip, PadCrop
from jaxdl.errors import UserError
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.tasks.adversarial import AdversarialTraining, Attack
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.semi_supervised import FixMatch, PseudoLabels, VirtualAdversarial
from jaxdl.tasks.sharpness import SAM

INNER = Classification(model=MLP(widths=(5,), classes=3))
NORMED = Classification(model=MLP(widths=(5,), classes=3, batch_norm=True))
LINEAR = Classification(model=MLP(widths=(), classes=3))
BATCH = {"image": jax.random.uniform(jax.random.key(0), (8, 6, 6, 1)),
         "label": jnp.array([0, 1, 2, -1, -1, -1, -1, -1]),
         "labelled": jnp.array([1., 1., 1., 0., 0., 0., 0., 0.]),
         "mask": jnp.array([1., 1., 0., 1., 1., 1., 1., 0.]), "index": jnp.arange(8) + 40}
FIX = FixMatch(task=INNER, weak=(Flip(probability=1.),), strong=(PadCrop(pad=2),), threshold=0.456)
TASKS: dict[str, Any] = {"pseudo": PseudoLabels(task=INNER, full=4), "fixmatch": FIX,
                         "adversarial": VirtualAdversarial(task=INNER, radius=0.5)}
TX = optax.sgd(0.1)


@functools.cache
def compiled(task: Any) -> Any:
    return (jax.jit(lambda batch: task.init(jax.random.key(1), batch, TX)),
            jax.jit(lambda state, batch: task.step(state, batch, TX)))


def trained(task: Any, steps: int = 1, batch: Any = BATCH) -> list[Any]:
    """(state, metrics) before and after each step."""
    init, step = compiled(task)
    states: list[Any] = [(init(batch), {})]
    for _ in range(steps):
        states.append(step(states[-1][0], batch))
    return states


def logits(state: Any, image: Any, model: Any = INNER.model) -> np.ndarray:
    return np.asarray(model.apply({"params": state.params}, image, train=True), np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", TASKS)
def test_without_weight_it_is_the_task_inside_on_the_labelled_examples(kind: str) -> None:
    task = dataclasses.replace(TASKS[kind], weight=0., **(
        {"weak": ()} if kind == "fixmatch" else {}))
    (before, _), (after, metrics) = trained(task)
    own = {**BATCH, "mask": BATCH["mask"] * BATCH["labelled"]}
    (_, _), (plain, expected) = trained(INNER, batch=own)
    chex.assert_trees_all_close(after.params, plain.params, rtol=1e-5, atol=1e-7)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(metrics[name].value(), expected[name].value(), rtol=1e-5)
        assert metrics[name].count == 2
    assert metrics["penalty"] == 0
    evaluated = jax.jit(task.evaluate)(before, BATCH)
    assert evaluated["loss"].count == 2 and np.isfinite(evaluated["loss"].total)
    everything = {k: x for k, x in BATCH.items() if k != "labelled"}
    everything["label"] = jnp.abs(BATCH["label"])
    assert jax.jit(task.evaluate)(before, everything)["accuracy"].count == 6


@pytest.mark.parametrize("kind", ["fixmatch", "adversarial"])
def test_batch_norm_sees_all_images_and_no_changed_one(kind: str) -> None:
    task = dataclasses.replace(TASKS[kind], task=NORMED, **(
        {"weak": ()} if kind == "fixmatch" else {}))
    batch = {**BATCH, "mask": jnp.ones(8)}
    after, _ = trained(task, batch=batch)[1]
    plain, _ = trained(NORMED, batch={**batch, "label": jnp.abs(batch["label"])})[1]
    chex.assert_trees_all_close(after.mutable["batch_stats"], plain.mutable["batch_stats"],
                                rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_masked_does_not_matter(kind: str) -> None:
    task, hidden = TASKS[kind], (BATCH["mask"] == 0)
    image = jnp.where(hidden[:, None, None, None], jnp.nan, BATCH["image"])
    label = jnp.where(hidden, 77, BATCH["label"])
    (a, one), (b, two) = (trained(task, 2, batch)[-1] for batch in (
        BATCH, {**BATCH, "image": image, "label": label}))
    chex.assert_tree_all_finite(b.params)
    chex.assert_trees_all_close(a.params, b.params, rtol=1e-6)
    np.testing.assert_allclose(one["penalty"], two["penalty"], rtol=1e-6)
    assert one["penalty"] > 0


def test_fixmatch_learns_strong_images_from_what_it_is_sure_of_in_weak_ones() -> None:
    task = dataclasses.replace(FIX, weight=0.7)
    (state, _), (after, metrics) = trained(task)
    key = jax.random.fold_in(state.key, state.step)
    weak = transformed(task.weak, dict(BATCH), jax.random.fold_in(key, 1))
    strong = transformed(task.strong, weak, jax.random.fold_in(key, 2))["image"]
    np.testing.assert_array_equal(weak["image"], BATCH["image"][:, :, ::-1])
    q = softmax(logits(state, weak["image"]))
    sure, target = q.max(-1) >= 0.456, q.argmax(-1)
    kept = np.array([3, 4, 5, 6])
    assert 0 < sure[kept].sum() < 4, f"the threshold parts them: {q.max(-1)}"
    losses = -np.log(softmax(logits(state, strong))[np.arange(8), target]) * sure
    np.testing.assert_allclose(metrics["penalty"], 0.7 * losses[kept].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["unlabelled_loss"].value(), losses[kept].mean(), rtol=1e-5)
    assert metrics["sure"].value() == sure[kept].mean()
    label = -np.log(softmax(logits(state, weak["image"]))[[0, 1], [0, 1]]).mean()
    np.testing.assert_allclose(metrics["loss"].value(), label, rtol=1e-5)

    def objective(params: Any) -> Any:  # with the pseudo-labels as constants
        a, b = (jax.nn.log_softmax(INNER.model.apply({"params": params}, x, train=True))
                for x in (weak["image"], strong))
        return (-a[jnp.array([0, 1]), jnp.array([0, 1])].mean()
                - 0.7 * (b[jnp.arange(8), target] * sure)[kept].mean())

    moved = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, jax.grad(objective)(state.params))
    chex.assert_trees_all_close(after.params, moved, rtol=1e-4, atol=1e-6)


def test_the_weight_of_pseudo_labels_rises() -> None:
    task = PseudoLabels(task=INNER, weight=2., start=1, full=3)
    for parts in (1, 2):
        states = trained(dataclasses.replace(task, accumulate=parts), 5)
        ramp = [float(m["penalty"] / m["unlabelled_loss"].value()) for _, m in states[1:]]
        if parts == 1:  # else the mean over the parts is not that over all
            np.testing.assert_allclose(ramp, [0, 0, 1, 2, 2], rtol=1e-5)
        assert ramp[1] == 0 < ramp[2]
    (state, _), (_, metrics) = states[0], states[1]
    own = logits(state, BATCH["image"])[[3, 4, 5, 6]]
    np.testing.assert_allclose(metrics["unlabelled_loss"].value(),
                               -np.log(softmax(own).max(-1)).mean(), rtol=1e-5)
    with pytest.raises(UserError, match="full=3 must come after start=3"):
        PseudoLabels(task=INNER, start=3, full=3)


def test_virtual_adversarial_examples_are_those_of_algorithm_1() -> None:
    """Of a linear classifier p = softmax(x W + b) the gradient of KL(p, q) at r is W (q(r) - p)."""
    task = VirtualAdversarial(task=LINEAR, radius=0.8, xi=0.3, weight=0.5)
    (state, _), (after, metrics) = trained(task)
    w, b = (np.asarray(state.params["head"][k], np.float64) for k in ("kernel", "bias"))
    x = np.asarray(BATCH["image"], np.float64).reshape(8, -1)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1), i)
            for i in BATCH["index"]]
    d = np.stack([np.asarray(jax.random.normal(key, (6, 6, 1))).ravel() for key in keys])
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    p = softmax(x @ w + b)
    g = (softmax((x + 0.3 * d) @ w + b) - p) @ w.T
    r = 0.8 * g / np.linalg.norm(g, axis=1, keepdims=True)
    q = softmax((x + r) @ w + b)
    kl = (p * np.log(p / q)).sum(-1)
    kept = np.asarray(BATCH["mask"]) > 0
    np.testing.assert_allclose(metrics["smoothness"].value(), kl[kept].mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["penalty"], 0.5 * kl[kept].mean(), rtol=1e-3)
    random = (p * np.log(p / softmax((x + 0.8 * d) @ w + b))).sum(-1)
    assert kl[kept].mean() > 3 * random[kept].mean(), "worse than a random direction"
    # Its gradient holds p and r fixed: d KL / d b = q - p.
    slope = 0.5 * (q - p)[kept].mean(0) + (p[:2] - np.eye(3)[:2]).mean(0)
    np.testing.assert_allclose(after.params["head"]["bias"], b - 0.1 * slope, rtol=1e-3, atol=1e-5)


def test_where_all_have_labels_virtual_adversarial_training_goes_on() -> None:
    batch = {k: x for k, x in BATCH.items() if k != "labelled"}
    batch["label"] = jnp.abs(batch["label"])
    metrics = trained(TASKS["adversarial"], batch=batch)[1][1]
    assert metrics["loss"].count == 6 and metrics["penalty"] > 0


@pytest.mark.parametrize("wrap", [
    lambda: SAM(task=FIX, ema=0.9),
    lambda: SWA(task=TASKS["pseudo"], start=1),
    lambda: dataclasses.replace(TASKS["adversarial"], compute_dtype="bfloat16", accumulate=2,
                                freeze=("dense1/.*",)),
    lambda: dataclasses.replace(FIX, task=DeepSupervision(
        task=Classification(model=CNN(channels=(2,), dense=(), classes=3)), layers=("conv1",),
        classes=3)),
])
def test_they_compose(wrap: Any) -> None:
    task = wrap()
    state, metrics = trained(task, 2)[-1]
    assert np.isfinite(task.evaluate(state, BATCH)["loss"].value()) and "penalty" in metrics
    assert task.logits(state, BATCH).shape == (8, 3)
    assert config.from_json(config.to_json(task)) == task


def test_the_model_has_a_logit_for_each_class() -> None:
    one = Classification(model=MLP(widths=(), classes=1))
    with pytest.raises(UserError, match="FixMatch: the model has one logit"):
        trained(FixMatch(task=one))


def test_what_is_inside_may_attack_the_labelled_images() -> None:
    """FixMatch gives the model all images, but leaves those that the task inside made."""
    def losses(radius: float) -> Any:
        attack = Attack(radius=radius, step=radius, steps=2, random=False, low=-9., high=9.)
        task = dataclasses.replace(FIX, task=AdversarialTraining(task=INNER, attack=attack))
        return trained(task)[1][1]

    plain, attacked = losses(0.), losses(0.5)
    assert attacked["loss"].value() > 1.01 * plain["loss"].value()
    np.testing.assert_allclose(attacked["unlabelled_loss"].value(),
                               plain["unlabelled_loss"].value(), rtol=1e-5)
