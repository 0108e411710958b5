"""Interpretability where the answer is known."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import interpret
from jaxdl.errors import UserError
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP

key = jax.random.key(0)


def bound(model: nn.Module, x: jax.Array, unit: int | None = 1) -> Any:
    """(the model as a function of inputs, its variables)."""
    variables = model.init(key, x, train=False)

    def f(x: jax.Array) -> Any:
        logits = model.apply(variables, x, train=False)
        return logits if unit is None else logits[:, unit]  # type: ignore

    return f, variables


def images(count: int = 3, size: int = 6, channels: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (count, size, size, channels))


def test_the_gradient_of_a_linear_model_is_its_weights() -> None:
    x = images()
    f, variables = bound(MLP(widths=(), classes=4), x)
    weights = variables["params"]["head"]["kernel"][:, 1].reshape(1, 6, 6, 1)
    expected = jnp.broadcast_to(weights, x.shape)
    np.testing.assert_allclose(interpret.gradient(f, x), expected, rtol=1e-5)
    np.testing.assert_allclose(interpret.smooth_grad(f, x, key, samples=4), expected, rtol=1e-5)
    np.testing.assert_allclose(interpret.integrated_gradients(f, x, steps=2), x * weights,
                               rtol=1e-4, atol=1e-6)


def test_integrated_gradients_are_complete() -> None:
    x = images()
    f, _ = bound(MLP(widths=(16,), classes=4, activation="tanh"), x)
    for baseline in (0., images(1) + 1):
        found = interpret.integrated_gradients(f, x, baseline, steps=256)
        difference = f(x) - f(jnp.broadcast_to(jnp.asarray(baseline), x.shape))
        np.testing.assert_allclose(found.sum((1, 2, 3)), difference, rtol=1e-3, atol=1e-4)


def test_smooth_grad_is_the_mean_gradient_under_noise() -> None:
    """Of x^3 it is 3 (x^2 + s^2): the noise adds its variance."""
    x = jnp.linspace(-1, 1, 5).reshape(1, 5)
    found = interpret.smooth_grad(lambda x: (x ** 3).sum(1), x, key, noise=0.5, samples=20_000)
    np.testing.assert_allclose(found, 3 * (x ** 2 + 1), rtol=0.1)


class Corners(nn.Module):
    """The first channel of its layer is the image, the second one is constant; the head's score 0
    takes the first, score 1 the second and minus the first."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def kernel(*_: Any) -> jax.Array:
            return jnp.zeros((1, 1, 1, 2)).at[0, 0, 0, 0].set(1.)

        x = nn.Conv(2, (1, 1), kernel_init=kernel, name="see",
                    bias_init=lambda *_: jnp.array([0., 1.]))(x)
        return nn.Dense(2, name="head", kernel_init=lambda *_: jnp.array([[1., -1.], [0., 1.]]))(
            x.mean((1, 2)))


def test_grad_cam_sees_the_corner_that_counts() -> None:
    x = jnp.zeros((2, 4, 4, 1)).at[0, 0, 0, 0].set(2.).at[1, 3, 1, 0].set(5.)
    f, _ = bound(Corners(), x, 0)
    found = jax.jit(lambda x: interpret.grad_cam(f, x, "see"))(x)
    np.testing.assert_allclose(found, x[..., 0] / 16, atol=1e-7)  # w_0 = 1 / 16, w_1 = 0
    other, _ = bound(Corners(), x, 1)
    np.testing.assert_allclose(interpret.grad_cam(other, x, "see"),
                               jax.nn.relu(1 - x[..., 0]) / 16, atol=1e-7)


def test_layers_are_named_and_found() -> None:
    x = images(2, 8)
    f, variables = bound(CNN(channels=(4, 6), dense=(5,), classes=3), x, None)
    found = interpret.layers(f, x)
    assert {path: layer.shape for path, layer in found.items()} == {
        "conv1": (2, 8, 8, 4), "conv2": (2, 4, 4, 6), "dense1": (2, 5), "head": (2, 3)}
    assert interpret.last_spatial(f, x) == "conv2"
    assert interpret.last_spatial(bound(MLP(), x)[0], x) is None
    with pytest.raises(UserError, match=r"no such layer. Did you mean 'conv2'"):
        interpret.layer_output(f, x, "covn2")
    with pytest.raises(UserError, match="expected a feature map"):
        interpret.grad_cam(lambda x: f(x)[:, 0], x, "head")
    head = variables["params"]["head"]
    np.testing.assert_allclose(interpret.last_layer(f, x) @ head["kernel"] + head["bias"], f(x),
                               rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(interpret.layer_output(f, x, "head"), f(x), rtol=1e-6)
    with pytest.raises(UserError, match="no dense layer"):
        interpret.last_layer(lambda x: x, x)


def test_first_layer_filters() -> None:
    x = images(2, 8, 3)
    f, variables = bound(CNN(channels=(4,), classes=3), x, None)
    found = interpret.first_layer_filters(f, x)
    assert found is not None and found.shape == (4, 3, 3, 3)
    np.testing.assert_array_equal(found[2], variables["params"]["conv1"]["kernel"][..., 2])
    f, variables = bound(MLP(widths=(5,)), x, None)
    found = interpret.first_layer_filters(f, x)
    assert found is not None and found.shape == (5, 8, 8, 3)
    row = variables["params"]["dense1"]["kernel"][:, 1]
    np.testing.assert_array_equal(found[1].reshape(-1), row)
    assert interpret.first_layer_filters(lambda x: x, x) is None


def test_ascent_raises_the_activation() -> None:
    x = 0.1 * images(2, 8)
    f, _ = bound(CNN(channels=(4,), dense=(), classes=3), x)
    found = interpret.activation_maximization(f, x, key, steps=16, low=-1., high=1.)
    assert bool((f(found) > f(x) + 0.5).all())
    assert float(jnp.abs(found).max()) <= 1
    smooth = interpret.activation_maximization(f, x, key, steps=16, variation=50.)
    assert float(jnp.abs(jnp.diff(smooth, axis=1)).mean()) < 0.5 * float(
        jnp.abs(jnp.diff(found, axis=1)).mean())


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(50, 7)) @ np.diag(range(1, 8)) + 3
    found, parts = interpret.pca(x)
    reference = PCA(2).fit(x)
    expected = reference.transform(x)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(parts, reference.explained_variance_ratio_, rtol=1e-4)


def test_tsne_keeps_clusters_apart() -> None:
    chance = np.random.default_rng(0)
    x = np.concatenate([chance.normal(size=(20, 5)), chance.normal(size=(20, 5)) + 20])
    found = interpret.tsne(x)
    assert found.shape == (40, 2)
    one, two = found[:20], found[20:]
    assert np.linalg.norm(one.mean(0) - two.mean(0)) > 2 * max(one.std(), two.std())
