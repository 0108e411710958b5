"""Few bits: rounding against loops in NumPy, the straight-through gradient, ranges of inputs, and
that whatever is evaluated is the rounded network."""

import dataclasses
import json
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.errors import UserError
from jaxdl.export import Exported
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Constant
from jaxdl.prune import Pruned
from jaxdl.quantize import Quantized, dequantize, quantize, rounded, size
from jaxdl.task import named
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.quantized import QuantizationAware, in_steps
from jaxdl.tasks.sharpness import SAM

INNER = Classification(model=MLP(widths=(5,), classes=3))
BATCH = {"image": jax.random.normal(jax.random.key(0), (4, 6, 6, 1)).at[3].set(jnp.nan),
         "label": jnp.array([0, 1, 2, 1]), "mask": jnp.array([1., 1., 1., 0.]),
         "index": jnp.arange(4)}
TX = optax.sgd(0.1)
KEY = jax.random.key(0)
PARAMS = {"conv": {"kernel": jax.random.normal(KEY, (3, 3, 2, 4)).at[..., 1].set(0),
                   "bias": jnp.array([0.123, 0.456, -1.0, 2.0])},
          "dense": {"kernel": 5 * jax.random.normal(jax.random.key(1), (7, 3))},
          "embed": {"embedding": jnp.ones((4, 3)) / 3}}


def by_loops(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(integers, scales) of a kernel, output by output, number by number."""
    ints, scales = np.zeros(w.shape, np.int64), np.ones(w.shape[-1], np.float32)
    for o in range(w.shape[-1]):
        largest = max(abs(float(x)) for x in w[..., o].ravel())
        if largest > 0:
            scales[o] = np.float32(largest) / np.float32(2 ** (bits - 1) - 1)
        for at in np.ndindex(*w.shape[:-1]):
            ints[(*at, o)] = round(float(w[(*at, o)] / scales[o]))
    return ints, scales


@pytest.mark.parametrize("bits", [8, 3, 2])
def test_weights_are_rounded_output_by_output(bits: int) -> None:
    ints, scales = quantize(PARAMS, bits)
    back = dequantize(ints, scales)
    for name in ("conv", "dense"):
        w = np.asarray(PARAMS[name]["kernel"])
        expected, scale = by_loops(w, bits)
        assert ints[name]["kernel"].dtype == jnp.int8
        np.testing.assert_array_equal(ints[name]["kernel"], expected)
        np.testing.assert_allclose(scales[name]["kernel"], scale, rtol=1e-6)
        assert np.abs(expected).max() == 2 ** (bits - 1) - 1
        assert (np.abs(back[name]["kernel"] - w) <= scale / 2 + 1e-6).all()
    assert scales["conv"]["bias"] is None and scales["embed"]["embedding"] is None
    for name, leaf in (("conv", "bias"), ("embed", "embedding")):
        np.testing.assert_array_equal(back[name][leaf], PARAMS[name][leaf])
    chex.assert_trees_all_close(back, rounded(PARAMS, bits), rtol=1e-6)
    chex.assert_trees_all_close(rounded(back, bits), back, rtol=1e-6)
    packed = -(-72 * bits // 8) + 4 * 4 + 4 * 4 + -(-21 * bits // 8) + 4 * 3 + 4 * 12
    assert size(PARAMS, bits) == packed


def test_what_is_not_finite_is_not_hidden() -> None:
    kernel = PARAMS["dense"]["kernel"].at[2, 1].set(jnp.nan)
    found = rounded({"kernel": kernel})["kernel"]
    assert np.isnan(found[:, 1]).any() and np.isfinite(found[:, ::2]).all()


def test_only_what_is_named_is_rounded() -> None:
    ints, scales = quantize(PARAMS, 8, ("dense/.*", ".*embedding"))
    assert [p for p, x in named(ints).items() if x.dtype == jnp.int8] == [
        "dense/kernel", "embed/embedding"]
    assert len(named(scales)) == 2
    with pytest.raises(UserError, match=r"only: 'desne/.*' matches no parameter. Did you mean "
                                        r"'dense/kernel'"):
        quantize(PARAMS, 8, ("desne/.*",))
    with pytest.raises(UserError, match=r"task.only: 'x' matches no parameter"):
        start(QuantizationAware(task=INNER, only=("x",)))


def start(task: Any) -> Any:
    return jax.jit(lambda key: task.init(key, BATCH, TX))(jax.random.key(1))


def step(task: Any, state: Any, steps: int = 1, tx: Any = TX) -> Any:
    one = jax.jit(lambda state: task.step(state, BATCH, tx)[0])
    for _ in range(steps):
        state = one(state)
    return state


def test_the_gradient_is_that_at_the_rounded_weights() -> None:
    task = QuantizationAware(task=INNER, bits=2)
    before = start(task)
    chex.assert_trees_all_equal(before.params, start(INNER).params)
    after = step(task, before)

    def loss(params: Any) -> Any:
        mean, _ = INNER.loss({"params": params}, BATCH, KEY, train=True)
        return mean.total / mean.count

    gradient = jax.grad(loss)(rounded(before.params, 2))
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, before.params, gradient)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-6)
    assert "finite_differences" in task.not_applicable


def test_an_input_has_equal_steps_and_no_gradient_beyond() -> None:
    x = np.array([-3., -1., -0.6, -0.2, 0., 0.1, 0.7, 1.4, 2.9, 3.1], np.float32)
    low, high, bits = -1.1, 3.0, 2
    scale = (high - low) / 3
    zero = round(-low / scale)
    expected = [(min(max(round(float(v) / scale) + zero, 0), 3) - zero) * scale for v in x]
    limits = jnp.array([low, high])
    np.testing.assert_allclose(in_steps(jnp.asarray(x), limits, bits), expected, rtol=1e-5)
    slope = jax.vmap(jax.grad(lambda v: in_steps(v, limits, bits)))(jnp.asarray(x))
    ends = -zero * scale, (3 - zero) * scale
    np.testing.assert_array_equal(slope, [(ends[0] < v < ends[1]) for v in x])
    np.testing.assert_array_equal(in_steps(jnp.asarray(x), jnp.zeros(2), bits), x)
    assert in_steps(jnp.zeros(3), limits, bits).tolist() == [0, 0, 0]


def test_ranges_of_inputs_follow_the_examples_that_count() -> None:
    task = QuantizationAware(task=INNER, bits=8, activation_bits=3, decay=0.5)
    state = start(task)
    shapes = {"dense1/inputs": (2,), "head/inputs": (2,)}
    assert {p: x.shape for p, x in named(state.mutable["quantization"]).items()} == shapes
    image = np.asarray(BATCH["image"]).reshape(4, -1)[:3]
    ranges: dict[str, np.ndarray] = {}

    def logits(params: Any, follow: bool) -> np.ndarray:
        x = image
        for name in ("dense1", "head"):
            new = np.array([min(x.min(), 0), max(x.max(), 0)])
            if follow:
                ranges[name] = (ranges[name] + new) / 2 if name in ranges else new
            low, high = ranges[name]
            scale = (high - low) / 7
            zero = np.round(-low / scale)
            x = (np.clip(np.round(x / scale) + zero, 0, 7) - zero) * scale
            layer = jax.device_get(rounded(params, 8))[name]
            x = x @ layer["kernel"] + layer["bias"]
            x = np.maximum(x, 0) if name == "dense1" else x
        return x

    before, one = state, jax.jit(lambda state: task.step(state, BATCH, TX)[0])
    for _ in range(2):
        logits(before.params, follow=True)
        after = one(before)
        for name, limits in ranges.items():
            np.testing.assert_allclose(after.mutable["quantization"][name]["inputs"], limits,
                                       rtol=1e-5, atol=1e-6)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
        before = after
    found = task.logits(before, {**BATCH, "image": BATCH["image"][:3]})
    np.testing.assert_allclose(found, logits(before.params, follow=False), rtol=1e-4, atol=1e-5)
    plain = QuantizationAware(task=INNER, bits=8).logits(before, BATCH)[:3]
    assert float(jnp.abs(plain - found).max()) > 1e-2


def test_a_range_holds_zero_and_what_is_masked_is_not_in_it() -> None:
    task = QuantizationAware(task=INNER, activation_bits=4, decay=0.75)
    mask = jnp.array([1., 0.])
    first = task.followed(jnp.zeros(2), jnp.array([[1., 4.], [jnp.nan, -9.]]), mask)
    np.testing.assert_array_equal(first, [0, 4])
    second = task.followed(first, jnp.array([[-2., 2.], [99., 99.]]), mask)
    np.testing.assert_allclose(second, [-0.5, 3.5])


CONV = Classification(model=CNN(channels=(4,), dense=(), classes=3, batch_norm=True))


@pytest.mark.parametrize(("inner", "wrap"), [
    (CONV, lambda task: QuantizationAware(task=task, bits=2, activation_bits=4, accumulate=2,
                                          remat="full")),
    (INNER, lambda task: SWA(task=QuantizationAware(task=SAM(task=task), bits=2,
                                                    activation_bits=4), start=1)),
    (INNER, lambda task: SAM(task=QuantizationAware(task=task, bits=2, activation_bits=4),
                             ema=0.9)),
    (INNER, lambda task: QuantizationAware(task=DeepSupervision(
        task=task, layers=("dense1",), classes=3), bits=2, activation_bits=4,
        freeze=("head/.*",))),
])
def test_whatever_is_evaluated_is_the_rounded_network(inner: Any, wrap: Any) -> None:
    """Loss, logits, probabilities and predictions, whichever task is outside."""
    task = wrap(inner)
    assert config.from_json(json.loads(json.dumps(config.to_json(task)))) == task
    state = step(task, start(task), 3)
    batch = {**BATCH, "image": jnp.nan_to_num(BATCH["image"])}
    trained = state.params if state.ema is None else state.ema
    weights = {**trained, **state.frozen}
    weights.pop("companions", None)
    aware: Any = task if isinstance(task, QuantizationAware) else task.task

    @jax.jit
    def expected(params: Any, mutable: Any) -> Any:
        with nn.intercept_methods(aware.inputs(None)):
            return inner.model.apply({"params": params, **mutable}, batch["image"], train=False)

    logits = expected(rounded(weights, 2), state.mutable)
    assert float(jnp.abs(expected(weights, state.mutable) - logits).max()) > 1e-2
    found = jax.jit(lambda s: (task.logits(s, batch), task.probabilities(s, batch),
                               task.predict(s, batch), task.evaluate(s, batch)))(state)
    np.testing.assert_allclose(found[0], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], jax.nn.softmax(logits), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[2], logits.argmax(-1))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"])[:3]
    np.testing.assert_allclose(found[3]["loss"].value(), losses.mean(), rtol=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Says(Classification):
    """A task that says itself what it exports."""

    def exported(self) -> Exported:
        return Exported(inputs=("image",), compared="logits", outputs=lambda state, batch: {
            "logits": self.logits(state, batch)})


def test_what_is_exported_is_the_rounded_network() -> None:
    task = QuantizationAware(task=Says(model=INNER.model), bits=2)
    state = start(task)
    found = task.exported().outputs(state, BATCH)["logits"]
    np.testing.assert_allclose(found, task.logits(state, BATCH), rtol=1e-6)
    assert float(jnp.abs(found - INNER.logits(state, BATCH))[:3].max()) > 1e-2
    assert not hasattr(QuantizationAware(task=INNER), "exported")


def test_a_trained_network_is_measured_after_rounding() -> None:
    task = dataclasses.replace(INNER, ema=0.9, freeze=("head/.*",))
    state = step(task, start(task), 2)
    found = jax.jit(lambda s: Quantized(bits=2).measure(task, s, BATCH))(state)
    for name in ("params", "frozen", "ema"):
        state = dataclasses.replace(state, **{name: rounded(getattr(state, name), 2)})
    expected = jax.jit(task.evaluate)(state, BATCH)
    for name in expected:
        np.testing.assert_allclose(found[name].value(), expected[name].value(), rtol=1e-5)
    assert found["bytes"].value() == 36 * 5 * 2 / 8 + 4 * 5 + 4 * 5 + 4 + 4 * 3 + 4 * 3
    with pytest.raises(UserError, match=r"evals.*only: 'x' matches no parameter"):
        Quantized(only=("x",)).measure(task, state, BATCH)


def test_a_pruned_weight_stays_zero_when_rounded() -> None:
    task = QuantizationAware(task=INNER, bits=3)
    tx = Pruned(optimizer=SGD(learning_rate=Constant(peak=0.1)), sparsity=0.5, start=0.,
                end=0.).build(3)
    state = jax.jit(lambda key: task.init(key, BATCH, tx))(jax.random.key(1))
    state = step(task, state, 3, tx)
    network = task.innermost(task.variables(state))
    for path, mask in named(state.opt_state.masks).items():
        assert (named(network["params"])[path][~mask] == 0).all() and not mask.all()
