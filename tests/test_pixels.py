"""The autoregressive model: what a pixel may see, an exact likelihood, and samples that have it."""

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
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.task import named
from jaxdl.tasks.pixels import Pixels
from tests.tiny import state_of

KEY = jax.random.key(0)
MODEL = PixelCNN(levels=2, width=4, layers=2)
TASK = Pixels(model=MODEL, shape=(5, 4, 1))
BATCH = {"image": jax.random.bernoulli(KEY, 0.5, (4, 5, 4, 1)).astype(jnp.float32),
         "index": jnp.arange(4), "label": jnp.arange(4) % 3, "mask": jnp.array([1., 1., 1., 0.])}


def test_a_pixel_depends_on_all_before_it_and_on_no_other() -> None:
    """By the Jacobian, with parameters away from where units are dead."""
    model = MODEL.clone(layers=3, width=16)
    x = jax.random.normal(KEY, (1, 5, 4, 1))

    @jax.jit
    def seen() -> Any:
        variables = model.init(KEY, x, None, False)
        jacobian = jax.jacrev(lambda x: model.apply(variables, x, None, False).sum(-1))(x)
        return jnp.abs(jacobian).sum((0, 3, 6)).reshape(20, 20)

    dependence = np.asarray(seen()) > 0
    np.testing.assert_array_equal(dependence, np.tril(np.ones((20, 20), bool), -1))


def test_every_parameter_is_used() -> None:
    state = state_of(TASK, BATCH)
    gradient = jax.jit(jax.grad(lambda params: TASK.loss(
        {**TASK.variables(state), "params": params}, BATCH, KEY, train=True)[0].value()))(
        jax.tree.map(lambda x: x + 0.1, state.params))
    assert [path for path, x in named(gradient).items() if not np.any(x)] == []


def test_the_probabilities_of_all_images_add_up_to_one_and_samples_have_them() -> None:
    task = Pixels(model=MODEL, shape=(2, 2, 1))
    every = (jnp.arange(16)[:, None] >> jnp.arange(4) & 1).astype(jnp.float32)
    batch = {"image": every.reshape(16, 2, 2, 1), "index": jnp.arange(16), "mask": jnp.ones(16)}
    state = state_of(task, batch)
    state = dataclasses.replace(state, params=jax.tree.map(lambda x: 2.5 * x, state.params))

    def nats(image: Any) -> Any:
        one = {"image": image[None], "index": jnp.zeros(1, int), "mask": jnp.ones(1)}
        return task.loss(task.variables(state), one, KEY, train=False)[0].total

    p = np.exp(-np.asarray(jax.jit(jax.vmap(nats))(batch["image"])))
    assert p.sum() == pytest.approx(1, rel=1e-5) and p.max() > 1.5 * p.min()
    drawn = np.asarray(jax.jit(lambda: task.sample(state, KEY, 20_000))()).reshape(-1, 4)
    found = np.bincount((drawn @ [1, 2, 4, 8]).astype(int), minlength=16) / len(drawn)
    assert np.abs(found - p).max() < 0.015


def test_what_is_given_stays() -> None:
    state = state_of(TASK, BATCH)
    found = jax.jit(lambda: TASK.continued(state, KEY, BATCH["image"], None, 2))()
    np.testing.assert_array_equal(found[:, :2], BATCH["image"][:, :2])
    assert (found[:, 2:] != BATCH["image"][:, 2:]).any()


def test_bits_masks_and_a_fresh_network() -> None:
    state = state_of(TASK, BATCH)
    evaluate = jax.jit(TASK.evaluate)
    found = evaluate(state, BATCH)
    np.testing.assert_allclose(found["bits_per_dim"].value(),
                               found["loss"].value() / (20 * np.log(2)), rtol=1e-6)
    assert found["loss"].value() == pytest.approx(float(TASK.initial_loss(BATCH)), rel=0.3)
    bad = {**BATCH, "image": BATCH["image"].at[3].set(jnp.nan)}
    chex.assert_trees_all_close(found, evaluate(state, bad), rtol=1e-6)


def test_a_conditional_network_learns_grey_images() -> None:
    task = Pixels(model=PixelCNN(levels=4, width=8, layers=1, classes=2), shape=(3, 3, 1), levels=4,
                  conditional=True)
    label = jnp.arange(16) % 2
    batch = {"image": (jnp.array([1., 3.])[label][:, None, None, None] / 3 * jnp.ones((3, 3, 1))),
             "label": label, "index": jnp.arange(16), "mask": jnp.ones(16)}
    tx = optax.adam(3e-2)
    state = jax.jit(lambda: task.init(KEY, batch, tx))()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 60, lambda _, s: task.step(s, batch, tx)[0], s))(state)
    drawn = jax.jit(lambda s: task.sample(s, KEY, 8))(state)
    agree = (jnp.round(3 * drawn) == jnp.array([1, 3])[jnp.arange(8) % 2][:, None, None, None])
    assert agree.mean() > 0.9
    assert config.from_json(config.to_json(task)) == task


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"task.shape=\(4, 4, 1\): the data has images of \(5, 4"):
        state_of(dataclasses.replace(TASK, shape=(4, 4, 1)), BATCH)
    with pytest.raises(UserError, match=r"task.levels=3: the model has 2"):
        state_of(dataclasses.replace(TASK, levels=3), BATCH)
