"""The variational autoencoder against a linear Gaussian model, of which everything is known."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

from jaxdl import config
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.tasks.vae import VAE, ImportanceWeighted
from tests.tiny import state_of

RANDOM = np.random.default_rng(0)
# x = z W + B + S * noise. The rows of W are orthogonal, so q(z|x) may have a diagonal covariance.
W = np.array([[1., 2.], [0.5, 0.7]])[:, :1] * np.array([[1., 1., 1., 1.], [1., -1., 1., -1.]])
B, S = RANDOM.normal(size=4), 0.5
BATCH = {"image": jnp.asarray(RANDOM.normal(size=(5, 2, 2, 1)), jnp.float32),
         "mask": jnp.array([1., 1., 1., 1., 0.]), "index": jnp.arange(5)}
KEY = jax.random.key(0)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return x.reshape(len(x), -1)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, z: Any, train: bool) -> Any:
        return nn.Dense(4, name="dense")(z).reshape(-1, 2, 2, 1)


TASK = VAE(encoder=Flat(), decoder=Linear(), latents=2, likelihood="gaussian", deviation=S)


def exact() -> Any:
    """A state with the exact posterior: covariance (1 + W W'/S^2)^-1, mean cov W (x - B)/S^2."""
    cov = np.linalg.inv(np.eye(2) + W @ W.T / S ** 2)
    kernel = (cov @ W / S ** 2).T
    state = state_of(TASK, BATCH)
    params = {"decoder": {"dense": {"kernel": W, "bias": B}}, "posterior": {
        "kernel": np.concatenate([kernel, np.zeros((4, 2))], 1),
        "bias": np.concatenate([-B @ kernel, np.log(np.diag(cov))])}}
    chex.assert_trees_all_equal_shapes(params, state.params)
    return dataclasses.replace(state, params=jax.tree.map(jnp.float32, params))


def evidence(images: Any) -> np.ndarray:
    normal: Any = multivariate_normal(B, W.T @ W + S ** 2 * np.eye(4))  # type: ignore
    return normal.logpdf(np.asarray(images).reshape(len(images), -1))


def copies(count: int) -> Any:
    """Each image that counts so many times, with other noise each time."""
    batch = jax.tree.map(lambda x: jnp.concatenate([x[:4]] * count), BATCH)
    return {**batch, "index": jnp.arange(4 * count)}


def test_the_bound_is_the_evidence_where_the_posterior_is_exact() -> None:
    """Every single weight is, whatever is drawn; the bound itself in its mean."""
    state, expected = exact(), evidence(BATCH["image"])
    weights = jax.jit(lambda key: TASK.log_weight(state, BATCH, key))
    for seed in range(3):
        np.testing.assert_allclose(weights(jax.random.key(seed)), expected, rtol=1e-4)
    for samples in (1, 8):
        evaluator = ImportanceWeighted(samples=samples)
        found = jax.jit(lambda e=evaluator: e.measure(TASK, state, BATCH))()
        np.testing.assert_allclose(found["bound"].value(), expected[:4].mean(), rtol=1e-4)
    # The divergence of the loss is a mean and not a sample: the noise of the rest has mean zero.
    found = jax.jit(TASK.evaluate)(state, copies(5_000))
    assert abs(found["elbo"].value() - expected[:4].mean()) < 0.05
    np.testing.assert_allclose(found["loss"].value(), -found["elbo"].value(), rtol=1e-6)


def test_the_bound_is_below_the_evidence_and_more_samples_near_it() -> None:
    state = exact()
    wrong = jax.tree.map(lambda x: 0.7 * x, state.params["posterior"])
    state = dataclasses.replace(state, params={**state.params, "posterior": wrong})
    many = copies(2_000)
    bounds = [float(jax.jit(lambda k=k: ImportanceWeighted(samples=k).measure(
        TASK, state, many))()["bound"].value()) for k in (1, 4, 100)]
    truth = evidence(BATCH["image"])[:4].mean()
    assert bounds[0] < bounds[1] - 0.02 < bounds[1] < truth - 0.02
    assert abs(bounds[2] - truth) < 0.02


def test_beta_weighs_the_divergence_and_bernoulli_pixels_have_their_likelihood() -> None:
    task = VAE(encoder=Flat(), decoder=Linear(), latents=2, beta=3.)
    batch = {**BATCH, "image": jnp.round(jax.nn.sigmoid(BATCH["image"]))}
    state = state_of(task, batch)
    found = {n: float(x.value()) for n, x in jax.jit(task.evaluate)(state, batch).items()}
    expected = found["reconstruction"] + 3 * found["divergence"]
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    given = RANDOM.normal(size=(5, 2, 2, 1))
    p = 1 / (1 + np.exp(-given))
    x = np.asarray(batch["image"])
    np.testing.assert_allclose(task.log_likelihood(batch["image"], jnp.asarray(given)), np.log(
        np.where(x == 1, p, 1 - p)).sum((1, 2, 3)), rtol=1e-5)


def test_what_is_masked_and_where_an_example_lies_change_nothing() -> None:
    state = exact()
    order = jnp.array([4, 2, 0, 1, 3])
    bad = {**BATCH, "image": BATCH["image"].at[4].set(jnp.nan)}
    evaluate = jax.jit(TASK.evaluate)
    found = evaluate(state, BATCH)
    for other in (bad, jax.tree.map(lambda x: x[order], bad)):
        chex.assert_trees_all_close(found, evaluate(state, other), rtol=1e-5)


def test_convolutional_halves_learn_and_draw() -> None:
    """A few images that it shall know by heart; samples have their shape and differ."""
    task = VAE(encoder=Encoder(features=16, channels=(4, 8)), decoder=Decoder(
        size=8, channels=(8, 4), dense=16), latents=3)
    image = jnp.zeros((4, 8, 8, 1)).at[0, :4].set(1.).at[1, 4:].set(1.).at[2, :, :4].set(1.)
    batch = {"image": image, "mask": jnp.ones(4), "index": jnp.arange(4)}
    tx = optax.adam(3e-2)
    state = jax.jit(lambda: task.init(KEY, batch, tx))()
    first = jax.jit(task.evaluate)(state, batch)["loss"].value()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 150, lambda _, s: task.step(s, batch, tx)[0], s))(state)
    assert jax.jit(task.evaluate)(state, batch)["loss"].value() < 0.5 * first
    drawn = jax.jit(lambda s: task.sample(s, KEY, 16))(state)
    chex.assert_shape(drawn, (16, 8, 8, 1))
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std(0).max() > 0.2
    between = jax.jit(lambda s: task.interpolate(s, KEY, 2, 5))(state)
    chex.assert_shape(between, (10, 8, 8, 1))
    assert config.from_json(config.to_json(task)) == task
