"""The classification task: its loss by hand, masks, micro-batches, averages, frozen parameters."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics as sklearn_metrics

from jaxdl.models.mlp import MLP
from jaxdl.task import Mean
from jaxdl.tasks.classification import Classification

CLASSES, SIZE = 5, 8
MODEL = MLP(widths=(6,), classes=CLASSES)
KEY = jax.random.key(0)


class Identity(nn.Module):
    """Takes the image for the logits, so that a test can choose them."""

    @nn.compact
    def __call__(self, x, train):
        return x.reshape(len(x), -1) * self.param("scale", nn.initializers.ones, ())


def example_batch(seed=0, soft=False):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, SIZE).astype(np.int32)
    if soft:
        label = rng.dirichlet(np.ones(CLASSES), SIZE).astype(np.float32)
    return {"image": rng.normal(size=(SIZE, 1, 1, CLASSES)).astype(np.float32), "label": label,
            "index": np.arange(SIZE, dtype=np.int32),
            "mask": np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)}


def numpy_losses(logits, label, smoothing=0.):
    if label.ndim == 1:
        label = np.eye(CLASSES)[label]
    label = (1 - smoothing) * label + smoothing / CLASSES
    logits = logits.astype(np.float64)
    return -(label * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)


@functools.partial(jax.jit, static_argnames=("task", "train"))
def loss(task, batch, train):
    return task.loss({"params": {"scale": jnp.ones(())}}, batch, KEY, train=train)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [None, 0.2])
@pytest.mark.parametrize("train", [False, True])
def test_loss_by_hand(soft, smoothing, train):
    batch = example_batch(soft=soft)
    mean, aux = loss(Classification(model=Identity(), label_smoothing=smoothing, top_k=(2, 3)),
                     batch, train)
    logits, mask = batch["image"].reshape(SIZE, -1), batch["mask"]
    losses = numpy_losses(logits, batch["label"], (smoothing or 0.) if train else 0.)
    chex.assert_trees_all_close(mean, Mean(np.float32((losses * mask).sum()), np.float32(6)),
                                rtol=1e-5)
    hard = batch["label"].argmax(-1) if soft else batch["label"]
    for k, name in ((1, "accuracy"), (2, "top2_accuracy"), (3, "top3_accuracy")):
        want = sklearn_metrics.top_k_accuracy_score(hard, logits, k=k, labels=range(CLASSES),
                                                    sample_weight=mask)
        assert float(aux.metrics[name].value()) == pytest.approx(want, abs=1e-6)
    if not soft and not train:
        want = sklearn_metrics.log_loss(hard, jax.nn.softmax(logits), labels=range(CLASSES),
                                        sample_weight=mask)
        assert float(mean.value()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("model", [Identity(), MODEL], ids=["identity", "mlp"])
def test_masked_rubbish_reaches_nothing(soft, model):
    clean, task = example_batch(soft=soft), Classification(model=model, top_k=(2,))
    dirty = {name: x.copy() for name, x in clean.items()}
    dirty["image"][2], dirty["image"][6] = np.nan, np.inf
    dirty["label"][[2, 6]] = np.nan if soft else -7
    variables = model.init(KEY, clean["image"], train=False)

    @jax.jit
    def run(params, batch):
        def total(params):
            mean, aux = task.loss({"params": params}, batch, KEY, train=True)
            return mean.total, (mean, aux.metrics)
        return jax.grad(total, has_aux=True)(params)

    out = run(variables["params"], dirty)
    chex.assert_tree_all_finite(out)
    chex.assert_trees_all_close(out, run(variables["params"], clean), rtol=1e-6)


def test_batches_add_up():
    task, batch = Classification(model=Identity(), top_k=(2,)), example_batch()
    whole, aux = loss(task, batch, False)
    parts = [loss(task, {name: x[i:i + 2] for name, x in batch.items()}, False)
             for i in range(0, SIZE, 2)]
    total = sum((mean for mean, _ in parts[1:]), parts[0][0])
    chex.assert_trees_all_close(total, whole, rtol=1e-6)
    right = sum(float(a.metrics["accuracy"].total) for _, a in parts)
    assert right == float(aux.metrics["accuracy"].total)


def trained(task, batches, learning_rate=0.5):
    tx = optax.sgd(learning_rate)
    state = jax.jit(lambda batch: task.init(jax.random.key(1), batch, tx))(batches[0])
    step = jax.jit(lambda state, batch: task.step(state, batch, tx))
    states, logs = [state], []
    for batch in batches:
        state, metrics = step(state, batch)
        states.append(state)
        logs.append(metrics)
    return states, logs


def test_micro_batches_equal_the_whole_batch():
    batches = [example_batch(i) for i in range(3)]
    task = Classification(model=MODEL, label_smoothing=0.1)
    one, one_log = trained(task, batches)
    four, four_log = trained(dataclasses.replace(task, accumulate=4), batches)
    chex.assert_trees_all_close(one[-1].params, four[-1].params, atol=1e-6)
    chex.assert_trees_all_close(one_log, four_log, rtol=1e-5)
    assert int(one[-1].step) == 3 and int(one[-1].seen) == 3 * SIZE


def test_average_of_the_parameters_is_what_is_evaluated():
    batches = [example_batch(i) for i in range(3)]
    task = Classification(model=MODEL, ema=0.15)
    states, _ = trained(task, batches)
    want = states[0].params
    for i, state in enumerate(states[1:]):
        decay = min(0.15, (1 + i) / (10 + i))
        want = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, want,  # noqa: B023
                            state.params)
    chex.assert_trees_all_close(states[-1].ema, want, rtol=1e-5)
    last, batch = states[-1], batches[0]
    plain = dataclasses.replace(last, params=last.ema, ema=None)
    chex.assert_trees_all_equal(task.evaluate(last, batch), task.evaluate(plain, batch))
    raw = dataclasses.replace(last, ema=None)
    assert float(task.evaluate(raw, batch)["loss"].total) != float(
        task.evaluate(last, batch)["loss"].total)


def test_frozen_parameters_stay():
    states, _ = trained(Classification(model=MODEL, freeze=("dense1/.*",)), [example_batch()])
    chex.assert_trees_all_equal(states[0].frozen, states[1].frozen)
    assert set(states[0].frozen) == {"dense1"} and set(states[0].params) == {"head"}
    assert not np.allclose(states[0].params["head"]["kernel"], states[1].params["head"]["kernel"])


def test_batch_statistics_are_updated_in_training_only():
    task = Classification(model=MLP(widths=(6,), classes=CLASSES, batch_norm=True))
    states, _ = trained(task, [example_batch()])
    before, after = (s.mutable["batch_stats"]["norm1"]["mean"] for s in states)
    assert not np.allclose(before, after)
    assert set(task.evaluate(states[1], example_batch())) == {"loss", "accuracy"}


def test_predictions():
    task, batch = Classification(model=MODEL), example_batch()
    state = trained(task, [batch])[0][-1]
    logits = MODEL.apply({"params": state.params}, batch["image"], train=False)
    chex.assert_trees_all_close(task.logits(state, batch), logits, rtol=1e-6)
    probabilities = task.probabilities(state, batch)
    chex.assert_shape(probabilities, (SIZE, CLASSES))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(task.predict(state, batch), np.asarray(logits).argmax(-1))
    half = dataclasses.replace(task, compute_dtype="bfloat16").logits(state, batch)
    assert half.dtype == jnp.float32
    chex.assert_trees_all_close(half, logits, atol=0.05)


def test_smoothing_and_dropout_may_be_traced():
    """One of two trials in one program equals the same trial alone."""
    batch = example_batch()

    def step(smoothing, dropout):
        task = Classification(model=MODEL.clone(dropout=dropout), label_smoothing=smoothing)
        tx = optax.sgd(0.5)
        return task.step(task.init(KEY, batch, tx), batch, tx)[0].params

    both = jax.jit(jax.vmap(step))(jnp.array([0.1, 0.3]), jnp.array([0.2, 0.5]))
    alone = jax.jit(lambda: step(0.3, 0.5))()
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], both), alone, atol=1e-5)
