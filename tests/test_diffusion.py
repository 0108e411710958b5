"""Diffusion: samplers with the true denoiser of a Gaussian, noise levels, and the two losses."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config, diffusion
from jaxdl.errors import UserError
from jaxdl.models.unet import UNet, to_channels, to_pixels
from jaxdl.tasks.diffusion import Diffusion
from tests.tiny import state_of

KEY = jax.random.key(0)
MEAN, DEVIATION = 1.5, 0.7
BATCH = {"image": jax.random.uniform(KEY, (4, 8, 8, 1), minval=-1.), "index": jnp.arange(4),
         "label": jnp.array([0, 1, 2, 0]), "mask": jnp.array([1., 1., 1., 0.])}
TASK = Diffusion(model=UNet(channels=(8, 16), blocks=1, patch=2, attention=2), shape=(8, 8, 1))


def denoise(x: Any, s: Any) -> Any:
    """The mean of y ~ N(MEAN, DEVIATION^2) given x = y + s n."""
    return (DEVIATION ** 2 * x + s ** 2 * MEAN) / (DEVIATION ** 2 + s ** 2)


def test_samplers_with_the_true_denoiser_sample_that_gaussian() -> None:
    high, count = 80., 20_000
    levels = diffusion.karras_levels(200, high=high)
    x = high * jax.random.normal(KEY, (count,)) + MEAN  # the distribution at the highest level
    # The exact solution: x - MEAN stays the same number of deviations.
    exact = MEAN + (x - MEAN) * DEVIATION / np.sqrt(DEVIATION ** 2 + high ** 2)
    for sample, error in ((diffusion.ddim, 0.05), (diffusion.heun, 0.002)):
        found = jax.jit(lambda x, sample=sample: sample(denoise, x, levels))(x)
        np.testing.assert_allclose(found, exact, atol=error)
    many = diffusion.karras_levels(1_000, high=high)
    found = jax.jit(lambda x: diffusion.ddpm(denoise, x, many, KEY))(x)
    assert abs(found.mean() - MEAN) < 4 * DEVIATION / count ** 0.5
    assert abs(found.std() / DEVIATION - 1) < 0.02
    assert abs(np.corrcoef(found, exact)[0, 1]) < 0.05  # noise of its own
    # Of a higher order: with half the steps a fourth of the error and not half of it.
    errors = [[float(np.abs(sample(denoise, x[:100], diffusion.karras_levels(n)) - exact[:100])
                     .mean()) for n in (40, 80)] for sample in (diffusion.ddim, diffusion.heun)]
    assert 1.7 < errors[0][0] / errors[0][1] < 2.6 and errors[1][0] / errors[1][1] > 3.3


def test_ddim_and_ddpm_are_those_of_the_papers() -> None:
    """In the papers' own units, x' = sqrt(a) x, with the noise that a network would give."""
    rising = np.asarray(diffusion.ddpm_levels("linear"), np.float64)
    now, then = rising[600], rising[580]
    a, b = 1 / (1 + now ** 2), 1 / (1 + then ** 2)
    x = np.linspace(-20, 20, 9)
    y = np.asarray(denoise(x, now))
    noise = (x * a ** 0.5 - a ** 0.5 * y) / (1 - a) ** 0.5  # of x' = sqrt(a) y + sqrt(1 - a) noise
    expected = (b ** 0.5 * y + (1 - b) ** 0.5 * noise) / b ** 0.5  # Song et al., equation 12
    found = diffusion.ddim(denoise, jnp.asarray(x), jnp.array([now, then]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    beta = 1 - a / b  # Ho et al., equation 7, with the two levels as neighbours
    mean = b ** 0.5 * beta / (1 - a) * y + (a / b) ** 0.5 * (1 - b) / (1 - a) * x * a ** 0.5
    deviation = (1 - b) / (1 - a) * beta
    many = jnp.broadcast_to(jnp.asarray(x), (40_000, 9))
    found = np.asarray(diffusion.ddpm(denoise, many, jnp.array([now, then]), KEY)) * b ** 0.5
    np.testing.assert_allclose(found.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(found.std(0), deviation ** 0.5, rtol=0.02)


def test_levels() -> None:
    linear = np.asarray(diffusion.ddpm_levels("linear"), np.float64)
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1_000))
    np.testing.assert_allclose(linear, np.sqrt((1 - a) / a), rtol=1e-3)
    cosine = np.asarray(diffusion.ddpm_levels("cosine"))
    assert (np.diff(linear) > 0).all() and (np.diff(cosine) > 0).all()
    np.testing.assert_allclose(1 / (1 + cosine[499] ** 2), np.cos(
        np.pi / 2 * 0.508 / 1.008) ** 2 / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2, rtol=1e-3)
    np.testing.assert_allclose(diffusion.spaced(jnp.arange(1., 11.), 4), [10., 7., 4., 1., 0.])
    karras = diffusion.karras_levels(5)
    np.testing.assert_allclose(karras[jnp.array([0, 4, 5])], [80., 0.002, 0.], rtol=1e-4)
    np.testing.assert_allclose(karras[2], ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, rtol=1e-4)


def test_guidance() -> None:
    def labelled(x: Any, s: Any, told: bool) -> Any:
        return x + (3. if told else 1.)

    for scale, expected in ((0., 1.), (1., 3.), (2.5, 6.)):
        assert diffusion.guided(labelled, scale)(jnp.zeros(()), jnp.ones(())) == expected


@pytest.mark.parametrize("objective", ["ddpm", "edm"])
def test_the_loss_is_that_of_the_denoiser(objective: Any) -> None:
    """weight(s) * |D(y + s n, s) - y|^2, as the papers weigh it, at what is drawn."""
    task = dataclasses.replace(TASK, objective=objective, data_deviation=0.6)
    state = state_of(task, BATCH)
    params = jax.tree.map(lambda x: x + 0.05, state.params)  # The last layer begins as zeros.
    state = dataclasses.replace(state, params=params)
    seen: list[Any] = []

    def watched(self: Any, s: Any) -> Any:
        seen.append(s)
        return Diffusion.constants(self, s)

    Watched = type("Watched", (Diffusion,), {"constants": watched})
    fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    Watched(**fields).loss({"params": state.params}, BATCH, KEY, train=False)
    levels = np.asarray(seen[0])[:, 0, 0, 0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(KEY, 1), BATCH["index"])
    drawn = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)
    expected = []
    for y, s, n in zip(BATCH["image"][:3], levels, drawn, strict=False):
        d = task.denoised(state, (y + s * n)[None], jnp.float32(s), None)[0]
        weight = 1 / s ** 2 if objective == "ddpm" else (s ** 2 + 0.6 ** 2) / (s * 0.6) ** 2
        expected.append(weight * ((d - y) ** 2).mean())
    found = jax.jit(task.evaluate)(state, BATCH)["loss"].value()
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-3)


def test_the_levels_of_edm_are_log_normal_and_those_of_ddpm_its_table() -> None:
    uniform = (jnp.arange(10_000) + 0.5) / 10_000
    logs = np.log(TASK.levels(uniform))
    assert abs(logs.mean() + 1.2) < 1e-3 and abs(logs.std() - 1.2) < 5e-3
    task = dataclasses.replace(TASK, objective="ddpm", schedule="linear")
    np.testing.assert_array_equal(task.levels((jnp.arange(1_000) + 0.5) / 1_000),
                                  diffusion.ddpm_levels("linear"))


@pytest.mark.parametrize("objective", ["ddpm", "edm"])
def test_a_fresh_network_has_the_loss_that_is_told(objective: Any) -> None:
    task = dataclasses.replace(TASK, objective=objective)
    image = jax.random.normal(KEY, (400, 8, 8, 1)) * 0.3
    batch = {"image": image, "mask": jnp.ones(400), "index": jnp.arange(400)}
    found = jax.jit(task.evaluate)(state_of(task, BATCH), batch)["loss"].value()
    assert found == pytest.approx(float(task.initial_loss(batch)), rel=0.03)


class Exact(nn.Module):
    """The noise in images whose pixels are normal by themselves, with deviation 0.5."""

    @nn.compact
    def __call__(self, x: Any, level: Any, label: Any, train: bool) -> Any:
        self.param("nothing", nn.initializers.zeros, (1,))
        s = jnp.exp(4 * level)[:, None, None, None]
        return s * x * jnp.sqrt(1 + s ** 2) / (0.25 + s ** 2)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("sampler", ["heun", "ddim", "ddpm"])
def test_samples_of_ddpm_have_the_deviation_of_the_data(schedule: Any, sampler: Any) -> None:
    task = Diffusion(model=Exact(), shape=(4, 4, 1), objective="ddpm", schedule=schedule,
                     sampler=sampler, sample_steps=40)
    state = state_of(task, {**BATCH, "image": jnp.zeros((4, 4, 4, 1))})
    found = jax.jit(lambda s: task.sample(s, KEY, 500))(state)
    assert float(found.std()) == pytest.approx(0.5, abs=0.08)


def test_a_conditional_network_learns_and_is_guided() -> None:
    """Three classes, each of one pattern: samples and what lies between them have their class's."""
    task = Diffusion(model=UNet(channels=(16,), blocks=1, patch=2, attention=None, classes=3),
                     shape=(4, 4, 1), conditional=True, label_dropout=0.2, guidance=1.5,
                     sample_steps=8)
    pattern = -jnp.ones((3, 4, 4, 1))
    pattern = pattern.at[0, :2].set(1.).at[1, :, :2].set(1.).at[2, ::3].set(1.)
    label = jnp.arange(48) % 3
    batch = {"image": pattern[label], "label": label, "mask": jnp.ones(48),
             "index": jnp.arange(48)}
    tx = optax.adam(1e-2)
    state = jax.jit(lambda: task.init(KEY, batch, tx))()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 200, lambda _, s: task.step(s, batch, tx)[0], s))(state)
    found, between = jax.jit(lambda s: (task.sample(s, KEY, 12), task.interpolate(s, KEY, 3, 2)))(
        state)
    chex.assert_shape(found, (12, 4, 4, 1))
    for images, of in ((found, np.arange(12) % 3), (between, np.arange(3).repeat(2))):
        errors = jnp.abs(images[:, None] - pattern).mean((2, 3, 4))  # [N, 3]
        np.testing.assert_array_equal(errors.argmin(-1), of)
        assert errors.min(-1).max() < 0.6  # to another pattern it is one at least
    assert config.from_json(config.to_json(task)) == task


def test_the_network_is_told_the_level_and_at_times_no_label() -> None:
    model = UNet(channels=(8,), blocks=1, patch=2, attention=None, classes=3)
    task = dataclasses.replace(TASK, model=model, conditional=True, label_dropout=1.)
    batch = {**BATCH, "label": jnp.arange(4) % 3}
    tx = optax.sgd(1.)
    state = jax.jit(lambda: task.init(KEY, batch, tx))()
    params = jax.tree.map(lambda x: x + 0.1, state.params)  # The last kernel begins as zero.
    before = dataclasses.replace(state, params=params)
    after = jax.jit(lambda s: task.step(s, batch, tx)[0])(before)
    moved = after.params["label"]["embedding"] != params["label"]["embedding"]
    assert moved.any(1).tolist() == [False, False, False, True]  # "no label" is the last one

    drawn = jax.jit(lambda level: model.apply({"params": params}, BATCH["image"][:1], level,
                                              jnp.zeros(1, int), False))
    assert float(jnp.abs(drawn(jnp.full(1, 0.1)) - drawn(jnp.full(1, 0.5))).max()) > 1e-3


@pytest.mark.parametrize(("changes", "message"), [
    ({"guidance": 2.}, "task.guidance: needs task.conditional=True"),
    ({"conditional": True}, r"task.conditional=True: task.model.classes=None; expected a number"),
    ({"conditional": True, "guidance": 1., "model": UNet(classes=3)}, "and a task.label_dropout")])
def test_labels_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **changes).check(None)


def test_what_is_masked_and_where_an_example_lies_change_nothing() -> None:
    state = state_of(TASK, BATCH)
    order = jnp.array([3, 1, 0, 2])
    bad = {**BATCH, "image": BATCH["image"].at[3].set(jnp.nan)}
    evaluate = jax.jit(TASK.evaluate)
    found = evaluate(state, BATCH)
    for other in (bad, jax.tree.map(lambda x: x[order], bad)):
        chex.assert_trees_all_close(found, evaluate(state, other), rtol=1e-5)


def test_pixels_become_channels_and_back() -> None:
    x = jnp.arange(2 * 4 * 6 * 3.).reshape(2, 4, 6, 3)
    y = to_channels(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[0, 1, 2, :3], x[0, 2, 4])
    np.testing.assert_array_equal(y[0, 1, 2, 9:], x[0, 3, 5])
    np.testing.assert_array_equal(to_pixels(y, 2), x)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"task.shape=\(4, 4, 1\): the data has images of \(8, 8"):
        state_of(dataclasses.replace(TASK, shape=(4, 4, 1)), BATCH)
    with pytest.raises(UserError, match=r"UNet: images of 8 x 8 cannot be divided by 16"):
        state_of(dataclasses.replace(TASK, model=UNet(channels=(8, 8, 8), patch=4)), BATCH)
