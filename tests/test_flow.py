"""The flow: its determinant against the Jacobian, its inverse, a density that adds up to one."""

import dataclasses
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
from jaxdl.models.real_nvp import RealNVP
from jaxdl.tasks.flow import Flow
from tests.tiny import state_of

KEY = jax.random.key(0)
MODEL = RealNVP(shape=(4, 4, 2), scales=2, width=4, blocks=1)
TASK = Flow(model=MODEL)
BATCH = {"image": jnp.round(255 * jax.random.uniform(KEY, (4, 4, 4, 2))) / 255,
         "index": jnp.arange(4), "mask": jnp.array([1., 1., 1., 0.])}


def moved(variables: Any) -> Any:
    """Parameters of a network that is not the identity any more."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(KEY, len(leaves))
    return structure.unflatten([x + 0.1 * jax.random.normal(k, x.shape)
                                for x, k in zip(leaves, keys, strict=True)])


def test_the_determinant_is_the_jacobians_and_the_inverse_is_one() -> None:
    x = jax.random.normal(KEY, (3, 4, 4, 2))
    fresh = jax.jit(lambda: MODEL.init(KEY, x, False))()
    z, determinant = jax.jit(lambda: MODEL.apply(fresh, x, False))()
    np.testing.assert_array_equal(determinant, 0)
    np.testing.assert_allclose(np.sort(z, -1), np.sort(x.reshape(3, -1), -1))  # the same numbers
    variables = moved(fresh)

    @jax.jit
    def all_of(x: Any) -> Any:
        z, determinant = MODEL.apply(variables, x, False)
        jacobian = jax.vmap(jax.jacrev(lambda x: MODEL.apply(variables, x[None], False)[0][0]))(x)
        return z, determinant, jacobian, MODEL.apply(variables, z, method="inverse")

    z, determinant, jacobian, again = all_of(x)
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64).reshape(3, 32, 32))
    np.testing.assert_allclose(determinant, expected, rtol=1e-4)
    assert np.abs(expected).min() > 0.05
    np.testing.assert_allclose(again, x, atol=1e-5)


def test_the_mapping_of_the_pixels_has_its_derivative() -> None:
    v = jnp.linspace(0.01, 0.99, 9).reshape(9, 1, 1, 1)
    y, slope = TASK.spread(v)
    expected = jax.vmap(jax.grad(lambda v: TASK.spread(v[None, None, None, None])[0].sum()))(
        v[:, 0, 0, 0])
    np.testing.assert_allclose(slope, np.log(expected), rtol=1e-4)
    np.testing.assert_allclose(jax.nn.sigmoid(y), 0.05 + 0.9 * v, rtol=1e-5)


class Scaled(nn.Module):
    """z = y / 2: a normal distribution of y, of which all is known."""

    shape: tuple[int, int, int] = (1, 1, 1)

    def __call__(self, y: Any, train: bool) -> Any:
        return y.reshape(len(y), -1) / 2, jnp.full(len(y), -np.log(2.))

    def inverse(self, z: Any) -> Any:
        return 2 * z.reshape(-1, 1, 1, 1)


class Learned(Scaled):
    @nn.compact
    def __call__(self, y: Any, train: bool) -> Any:
        self.param("nothing", nn.initializers.zeros, (1,))
        return super().__call__(y, train)


def test_the_density_adds_up_to_one_and_samples_have_it() -> None:
    task = Flow(model=Learned())
    levels = jnp.arange(256) / 255
    batch = {"image": jnp.repeat(levels, 40)[:, None, None, None], "index": jnp.arange(256 * 40),
             "mask": jnp.ones(256 * 40)}
    state = state_of(task, batch)

    def density(image: Any, index: Any) -> Any:
        one = {"image": image[None], "index": index[None], "mask": jnp.ones(1)}
        return jnp.exp(-task.loss(task.variables(state), one, KEY, train=False)[0].total)

    p = jax.jit(jax.vmap(density))(batch["image"], batch["index"]).reshape(256, 40).mean(1) / 256
    # The margins at both ends, which no pixel is mapped to, hold the rest.
    assert p.sum() == pytest.approx(0.859, abs=0.005)  # P(|y| < logit(0.95)), y ~ N(0, 2^2)
    drawn = np.asarray(jax.jit(lambda: task.sample(state, KEY, 100_000))()).ravel()
    assert abs((drawn < 0.5).mean() - 0.5) < 0.01
    middle = p[64:192].sum()
    assert abs(((drawn >= 64 / 255) & (drawn < 192 / 255)).mean() - middle) < 0.01


def test_bits_and_nats_and_masks() -> None:
    state = state_of(TASK, BATCH)
    evaluate = jax.jit(TASK.evaluate)
    found = evaluate(state, BATCH)
    np.testing.assert_allclose(found["bits_per_dim"].value(),
                               found["loss"].value() / (32 * np.log(2)) + 8, rtol=1e-6)
    bad = {**BATCH, "image": BATCH["image"].at[3].set(jnp.nan)}
    order = jnp.array([3, 1, 0, 2])
    for other in (bad, jax.tree.map(lambda x: x[order], bad)):
        chex.assert_trees_all_close(found, evaluate(state, other), rtol=1e-5)


def test_it_learns_and_draws() -> None:
    """Images of a dark and a bright half: a few steps save bits, and samples have the halves."""
    image = jnp.zeros((32, 4, 4, 2)).at[:, :2].set(0.9)
    batch = {"image": image, "index": jnp.arange(32), "mask": jnp.ones(32)}
    tx = optax.adam(1e-2)
    state = jax.jit(lambda: TASK.init(KEY, batch, tx))()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 150, lambda _, s: TASK.step(s, batch, tx)[0], s))(state)
    assert jax.jit(TASK.evaluate)(state, batch)["bits_per_dim"].value() < 5
    drawn, between = jax.jit(lambda s: (TASK.sample(s, KEY, 8), TASK.interpolate(s, KEY, 2, 3)))(
        state)
    chex.assert_shape(drawn, (8, 4, 4, 2))
    chex.assert_shape(between, (6, 4, 4, 2))
    assert drawn[:, :2].mean() - drawn[:, 2:].mean() > 0.6
    assert config.from_json(config.to_json(TASK)) == TASK


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"RealNVP: shape=\(4, 4, 2\) cannot be halved 3 times"):
        state_of(dataclasses.replace(TASK, model=MODEL.clone(scales=4)), BATCH)
    with pytest.raises(UserError, match=r"task.model: has no `shape`"):
        _ = Flow(model=nn.Dense(3))._size
