"""Private training: the gradient against NumPy, the accountant against published numbers."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.accountant import ORDERS, noise_for, privacy_spent, renyi_divergence
from jaxdl.data.digits import Digits
from jaxdl.data.loader import shuffled
from jaxdl.data.poisson import Poisson
from jaxdl.data.source import assemble
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Constant
from jaxdl.parallel import arrange
from jaxdl.task import named
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.privacy import PrivacySpent, Private
from jaxdl.tasks.sharpness import SAM
from jaxdl.tracing import tracing
from tests.tiny import state_of

LINEAR = Classification(model=MLP(widths=(), classes=3))
INNER = Classification(model=MLP(widths=(5,), classes=3))
SCALES = np.arange(1, 7).reshape(6, 1, 1, 1) / 10
BATCH = {"image": jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 2, 1)) * SCALES),
         "label": jnp.array([0, 1, 2, 1, 0, 2]), "mask": jnp.array([1., 1., 1., 1., 1., 0.]),
         "index": jnp.arange(6)}
TX = optax.sgd(1.)


def stepped(task: Any, batch: Any = BATCH, seed: int = 1) -> tuple[Any, Any, Any]:
    """The states before and after a step of SGD, and its metrics."""
    def both(key: Any, batch: Any) -> Any:
        state = task.init(key, batch, TX)
        return state, *task.step(state, batch, TX)

    return jax.jit(both)(jax.random.key(seed), batch)


def test_each_gradient_is_clipped_and_the_sum_is_divided_by_the_rows() -> None:
    """Softmax regression: the gradient of an example is x (p - y)^T and p - y."""
    weights = np.array([1., 1., 2., 1., .5, 0.])  # The sixth is masked.
    before, after, metrics = stepped(Private(task=LINEAR, clip=0.95, noise=0.),
                                     {**BATCH, "mask": jnp.asarray(weights)})
    x = np.asarray(BATCH["image"], np.float64).reshape(6, -1)
    w, b = (np.asarray(before.params["head"][k], np.float64) for k in ("kernel", "bias"))
    z = x @ w + b
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    error = p - np.eye(3)[np.asarray(BATCH["label"])]
    total_w, total_b, clipped = np.zeros_like(w), np.zeros_like(b), 0
    for i in range(5):
        g_w, g_b = np.outer(x[i], error[i]), error[i]
        length = math.sqrt((g_w ** 2).sum() + (g_b ** 2).sum())
        # With its weight, no example contributes more than 0.95.
        clipped += weights[i] * (weights[i] * length > 0.95)
        total_w += g_w * min(weights[i], 0.95 / length)
        total_b += g_b * min(weights[i], 0.95 / length)
    assert 0 < clipped < 5.5
    np.testing.assert_allclose(after.params["head"]["kernel"], w - total_w / 6, rtol=1e-5)
    np.testing.assert_allclose(after.params["head"]["bias"], b - total_b / 6, rtol=1e-5)
    assert metrics["clipped"].total == clipped and metrics["clipped"].count == 5.5
    loss = -np.log(p[np.arange(6), np.asarray(BATCH["label"])])
    np.testing.assert_allclose(metrics["loss"].value(), loss @ weights / 5.5, rtol=1e-5)
    assert metrics["accuracy"].count == 5.5


def test_masked_examples_groups_and_what_is_frozen() -> None:
    task = Private(task=INNER, noise=0.5, clip=0.7, freeze=("dense1/kernel",))
    before, whole, _ = stepped(task)
    chex.assert_trees_all_equal(before.frozen, whole.frozen)
    # What a masked example holds reaches nothing, and groups of examples add up.
    bad = {**BATCH, "image": BATCH["image"].at[5].set(jnp.nan)}
    parts = stepped(dataclasses.replace(task, group=2), bad)[1]
    chex.assert_trees_all_close(whole.params, parts.params, rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r"task.group=4 does not divide the batch of 6; the nearest "
                                        r"that does: 3 or 6"):
        stepped(dataclasses.replace(task, group=4))


def test_the_noise_has_the_promised_deviation_and_is_drawn_anew() -> None:
    wide = Classification(model=MLP(widths=(400,), classes=3))

    @jax.jit
    def update(noise: float, seed: int, step: int, mask: Any) -> Any:
        task, batch = Private(task=wide, clip=0.5, noise=noise), {**BATCH, "mask": mask}
        state = dataclasses.replace(task.init(jax.random.key(seed), BATCH, TX), step=step)
        after = task.step(state, batch, TX)[0]
        return jnp.concatenate([jnp.ravel(after.params[m][k] - state.params[m][k])
                                for m in ("dense1", "head") for k in ("kernel", "bias")])

    def noise(seed: int, step: int, mask: Any = BATCH["mask"]) -> Any:
        return np.asarray(update(1.4, seed, step, mask) - update(0., seed, step, mask)) * 6

    first = noise(1, 0)
    assert len(first) == 3203
    assert first.std() == pytest.approx(1.4 * 0.5, rel=0.05)
    assert abs(first.mean()) < 0.05
    assert abs(np.corrcoef(first[:1600], first[1600:3200])[0, 1]) < 0.1
    for other in (noise(2, 0), noise(1, 1)):  # of another run, of another step
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1
    alone = noise(1, 0, jnp.zeros(6))  # It does not depend on the examples, or on there being any.
    np.testing.assert_allclose(alone, first, atol=1e-4)


@pytest.mark.parametrize("task", [
    Private(task=SAM(task=INNER)),
    Private(task=DeepSupervision(task=INNER, layers=("dense1",), classes=3)),
    SWA(task=Private(task=INNER), start=1),
    Private(task=INNER, ema=0.9),
], ids=["SAM", "DeepSupervision", "SWA", "ema"])
def test_it_composes(task: Any) -> None:
    _, after, metrics = stepped(task)
    assert np.isfinite(task.evaluate(after, BATCH)["loss"].value())
    assert "clipped" in metrics and task.logits(after, BATCH).shape == (6, 3)
    assert ("companions" in after.params) == ("Deep" in str(task))
    assert config.from_json(config.to_json(task)) == task


def test_floats_may_be_traced() -> None:
    def trial(noise: Any, clip: Any) -> Any:
        task = Private(task=LINEAR, noise=noise, clip=clip)
        return task.step(task.init(jax.random.key(1), BATCH, TX), BATCH, TX)[0].params

    both = jax.jit(jax.vmap(trial))(jnp.array([0.5, 1.]), jnp.array([1., 0.2]))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], both),
                                jax.jit(trial)(1., 0.2), rtol=1e-5)


def test_what_breaks_the_guarantee_is_refused() -> None:
    with pytest.raises(UserError, match=r"task.accumulate=2: each micro-batch would have noise"):
        stepped(Private(task=INNER, accumulate=2))
    with pytest.raises(UserError, match=r"task.accumulate=2"):
        stepped(SWA(task=Private(task=INNER), start=1, accumulate=2))
    normed = Classification(model=MLP(widths=(4,), classes=3, batch_norm=True))
    with pytest.raises(UserError, match="the model keeps batch_stats, through which"):
        stepped(Private(task=normed))
    task = Private(task=INNER)
    state = state_of(task, BATCH)
    with (tracing(device_axis="data"),
          pytest.raises(UserError, match="parallel=pmap: each device would have noise")):
        task.step(state, BATCH, TX)


# The accountant.


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01)])
def test_epsilon_is_the_published_one(noise: float, epochs: int, published: float) -> None:
    """MNIST, batches of 256: the table of TensorFlow Privacy's tutorial, whose conversion was
    divergence + log(1 / delta) / (a - 1). (Its third line has an order between two of ours.)"""
    rate, steps = 256 / 60_000, epochs * 60_000 // 256
    older = steps * renyi_divergence(rate, noise) + math.log(1e5) / (ORDERS - 1)
    assert older.min() == pytest.approx(published, abs=0.005)
    # dp-accounting 0.6.0, which has the newer conversion, with the same orders.
    found = privacy_spent(rate=rate, noise=noise, steps=steps, delta=1e-5)
    assert found == pytest.approx({1.3: 0.9544295087, 1.1: 2.5969811786}[noise], rel=1e-8)


def test_the_divergence_of_the_whole_data_is_that_of_two_gaussians() -> None:
    np.testing.assert_allclose(renyi_divergence(1., 2.), ORDERS / (2 * 2. ** 2), rtol=1e-9)
    # Of order 2 by hand: log(1 + q^2 (exp(1 / sigma^2) - 1)).
    assert renyi_divergence(0.1, 0.8)[0] == pytest.approx(
        math.log1p(0.01 * math.expm1(1 / 0.64)), rel=1e-9)


def test_more_steps_and_less_noise_cost_more() -> None:
    spent = [privacy_spent(rate=0.05, noise=n, steps=s, delta=1e-5)
             for n, s in ((2., 10), (2., 100), (1., 100), (0.5, 100))]
    assert spent == sorted(spent) and spent[0] > 0
    assert privacy_spent(rate=0.05, noise=0., steps=1, delta=1e-5) == math.inf
    assert privacy_spent(rate=0.05, noise=1., steps=0, delta=1e-5) == 0
    noise = noise_for(epsilon=2., rate=0.05, steps=300, delta=1e-5)
    assert 1.99 < privacy_spent(rate=0.05, noise=noise, steps=300, delta=1e-5) <= 2
    with pytest.raises(UserError, match=r"noise_for\(epsilon=1e-09\): no noise"):
        noise_for(epsilon=1e-9, rate=0.05, steps=300, delta=1e-5)


def test_epsilon_is_that_of_another_library() -> None:
    pytest.importorskip("dp_accounting", reason="pip install dp-accounting")
    from dp_accounting import dp_event as events  # type: ignore[import-not-found]
    from dp_accounting.rdp import RdpAccountant  # type: ignore[import-not-found]

    for rate, noise, steps in ((256 / 60_000, 1.1, 14_062), (0.064, 2., 800), (0.3, 0.9, 50)):
        event = events.SelfComposedDpEvent(
            events.PoissonSampledDpEvent(rate, events.GaussianDpEvent(noise)), steps)
        found = privacy_spent(rate=rate, noise=noise, steps=steps, delta=1e-5)
        same = RdpAccountant(ORDERS.tolist()).compose(event).get_epsilon(1e-5)
        assert found == pytest.approx(same, rel=1e-6)
        more = RdpAccountant().compose(event).get_epsilon(1e-5)  # with orders between ours
        assert more <= found * (1 + 1e-9) < more * 1.03


# Sampling.


def test_each_example_enters_each_batch_by_a_coin_of_its_own() -> None:
    data = Poisson(data=Digits(size=8, channels=1), expected=60)
    source: Any = data.open("train")
    batches = [np.asarray(source.index(3, i * 120, 120)) for i in range(2_000)]
    np.testing.assert_array_equal(batches[7], source.index(3, 7 * 120, 120))
    drawn = np.zeros((2_000, source.size), bool)
    for i, ids in enumerate(batches):
        real = ids[ids >= 0]
        assert ids.shape == (120,) and len(np.unique(real)) == len(real)
        drawn[i, real] = True
    sizes, rate = drawn.sum(1), 60 / source.size
    assert source.rate == pytest.approx(rate)
    assert sizes.mean() == pytest.approx(60, abs=1)
    assert sizes.std() == pytest.approx(math.sqrt(60 * (1 - rate)), rel=0.1)
    each = drawn.mean(0)
    assert each.std() == pytest.approx(math.sqrt(rate * (1 - rate) / 2_000), rel=0.1)
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.005
    inputs = shuffled(source, 3, 0, 120, 5)[4]
    batch = assemble(source, jax.tree.map(jnp.asarray, source.arrays), inputs, jax.random.key(0))
    np.testing.assert_array_equal(batch["mask"] > 0, batches[4] >= 0)
    assert batch["index"].min() >= 0
    np.testing.assert_array_equal(source.read(batches[4])["label"][:3],
                                  source.arrays["label"][batches[4][:3]])
    assert data.open("test").size == 359 and data.names == Digits.names
    assert data.fingerprint() != dataclasses.replace(data, expected=61).fingerprint()
    assert config.from_json(config.to_json(data)) == data
    with pytest.raises(UserError, match=r"batch_size=64: .* expected at least 107"):
        source.index(0, 0, 64)
    with pytest.raises(UserError, match="expected=2000 is more than the 1438 training examples"):
        Poisson(data=Digits(), expected=2_000).open("train")


def test_an_evaluator_tells_what_was_spent() -> None:
    task, digits = Private(task=INNER, noise=1.2), Digits(size=8, channels=1)
    experiment = Experiment(task=task, data=digits, optimizer=SGD(learning_rate=Constant()),
                            steps=30, batch_size=100)

    def report(task: Any, data: Any) -> Any:
        context = Context(name="privacy", step=20, source=data.open, batch_size=100,
                          devices=arrange(experiment.mesh))
        return PrivacySpent(delta=1e-4)(task, None, context)

    expected = privacy_spent(rate=100 / 1_438, noise=1.2, steps=20, delta=1e-4)
    assert report(SWA(task=task, start=1), digits) == {"epsilon": expected, "sampled": 0.}
    found = report(task, Poisson(data=digits, expected=50))
    assert found == {"sampled": 1., "epsilon": privacy_spent(
        rate=50 / 1_438, noise=1.2, steps=20, delta=1e-4)}
    with pytest.raises(UserError, match="the task is SAM; expected Private, outside of every"):
        report(SAM(task=task), digits)


def test_its_gradient_norm_is_logged_as_the_private_one() -> None:
    _, after, metrics = stepped(Private(task=LINEAR, noise=0., clip=1e-3))
    assert metrics["grad_norm"] <= 1e-3
    assert named(after.params).keys() == {"head/kernel", "head/bias"}
