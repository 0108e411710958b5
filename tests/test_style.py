"""Style transfer: its losses against NumPy, the picture beside others, and both ways to paint."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdl import config
from jaxdl.data.style import OnePicture, WithStyle, picture
from jaxdl.errors import DataMissing, UserError
from jaxdl.models.cnn import CNN
from jaxdl.models.translator import Translator
from jaxdl.tasks.style import PaintedImage, StyleNetwork, activations, apart, gram

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
NETWORK = CNN(channels=(4, 6), average=True, dense=(), classes=3, batch_norm=True)
LAYERS: Any = {"content_layers": ("conv2",), "style_layers": ("conv1", "norm2")}
IMAGE = PaintedImage(features=NETWORK, style_weight=5., smoothness=0.3, start="noise", **LAYERS)
PAINTER = StyleNetwork(features=NETWORK, model=Translator(image_channels=3, channels=(4, 6),
                                                          blocks=1), **LAYERS)
TX = optax.adam(3e-2)


def batch(size: int) -> dict[str, Any]:
    style = jnp.asarray(RANDOM.normal(size=(1, 12, 12, 3)), jnp.float32)
    return {"image": jnp.asarray(RANDOM.normal(size=(size, 8, 8, 3)), jnp.float32),
            "style": jnp.broadcast_to(style, (size, 12, 12, 3)), "index": jnp.arange(size),
            "mask": jnp.ones(size)}


def initial(task: Any, data: Any) -> Any:
    return jax.jit(lambda: task.init(KEY, data, TX))()


def test_gram_matrices_and_distances_against_numpy() -> None:
    x, y = RANDOM.normal(size=(2, 2, 3, 5, 4))
    expected = np.einsum("bhwc,bhwd->bcd", x, x) / 15
    np.testing.assert_allclose(gram(jnp.asarray(x)), expected, rtol=1e-5)
    expected = [((a - b) ** 2).sum() / (b ** 2).sum() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(apart(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-5)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    data = batch(1)
    state = initial(IMAGE, data)
    x, p, a = state.params["image"], data["image"], data["style"]
    network = {"params": state.frozen["features"],
               "batch_stats": state.mutable["batch_stats"]["features"]}
    found, of = jax.jit(lambda: (IMAGE.evaluate(state, data), [
        activations(NETWORK, network, y, ("conv1", "conv2", "norm2")) for y in (x, p, a)]))()
    of_x, of_p, of_a = of
    content = apart(of_x["conv2"], of_p["conv2"])[0]
    style = sum(apart(gram(of_x[n]), gram(of_a[n]))[0] for n in ("conv1", "norm2")) / 2
    rough = sum(np.square(np.diff(x, axis=i)).mean() for i in (1, 2))
    np.testing.assert_allclose(found["content"].value(), content, rtol=1e-4)
    np.testing.assert_allclose(found["style"].value(), style, rtol=1e-4)
    unpainted = sum(apart(gram(of_p[n]), gram(of_a[n]))[0] for n in ("conv1", "norm2")) / 2
    np.testing.assert_allclose(found["unpainted"].value(), unpainted, rtol=1e-4)
    np.testing.assert_allclose(found["loss"].value(), content + 5 * style + 0.3 * rough, rtol=1e-4)
    assert list(state.params) == ["image"] and list(state.frozen) == ["features"]


def test_an_image_is_painted() -> None:
    """From noise: it takes the style on, and stays near the content; nothing else moves."""
    data = batch(1)
    task = dataclasses.replace(IMAGE, smoothness=0., style_weight=1.)
    before = initial(task, data)
    evaluate = jax.jit(task.evaluate)
    after = jax.jit(lambda s: jax.lax.fori_loop(
        0, 150, lambda _, s: task.step(s, data, TX)[0], s))(before)
    first, last = evaluate(before, data), evaluate(after, data)
    for name in ("content", "style"):
        assert last[name].value() < 0.7 * first[name].value(), name
    chex.assert_trees_all_equal(before.frozen, after.frozen)
    chex.assert_trees_all_equal(before.mutable, after.mutable)
    start = initial(dataclasses.replace(task, start="content"), data)
    np.testing.assert_array_equal(start.params["image"], 0 * data["image"])
    task = dataclasses.replace(task, start="content")
    assert jax.jit(task.evaluate)(start, data)["content"].value() == 0  # It begins as the content,
    # whatever the batch that the state was made with.


def test_a_network_paints_whatever_comes() -> None:
    data = batch(3)
    before = initial(PAINTER, data)
    evaluate = jax.jit(PAINTER.evaluate)
    after = jax.jit(lambda s: jax.lax.fori_loop(
        0, 60, lambda _, s: PAINTER.step(s, data, TX)[0], s))(before)
    assert evaluate(after, data)["loss"].value() < 0.8 * evaluate(before, data)["loss"].value()
    masked = {**data, "image": data["image"].at[2].set(jnp.nan), "mask": jnp.array([1., 1., 0.])}
    chex.assert_tree_all_finite(evaluate(after, masked))
    assert config.from_json(config.to_json(PAINTER)) == PAINTER


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return nn.BatchNorm(use_running_average=not train)(x)


@pytest.mark.parametrize(("task", "size", "message"), [
    (IMAGE, 2, "batch_size=2: one image is trained"),
    (dataclasses.replace(IMAGE, style_layers=("conv3",)), 1,
     r"layers: the model has no 'conv3'. Did you mean"),
    (dataclasses.replace(PAINTER, model=Normed()), 1, "keeps statistics of batches")])
def test_mistakes(task: Any, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: task.init(KEY, batch(size), TX))


def test_a_picture_beside_others(tmp_path: Path) -> None:
    for name, value in (("content", 10), ("style", 200)):
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    data = WithStyle(data=OnePicture(picture=str(tmp_path / "content.png"), size=8,
                                     mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
                     style=str(tmp_path / "style.png"), size=6)
    data.prepare()
    source: Any = data.open("train")
    assert source.size == 1
    inputs = {"index": jnp.zeros(2, int), "mask": jnp.ones(2),
              "image": jnp.asarray(source.read(np.zeros(2, int))["image"])}
    found = source.transform(inputs, KEY)
    assert found["image"].shape == (2, 8, 8, 3) and found["style"].shape == (2, 6, 6, 3)
    np.testing.assert_allclose(found["image"], 10 / 255 * 2 - 1, rtol=1e-5)
    np.testing.assert_allclose(found["style"], 200 / 255 * 2 - 1, rtol=1e-5)
    assert data.fingerprint() != dataclasses.replace(data, size=7).fingerprint()
    with pytest.raises(DataMissing, match=r"none.png: there is no such picture; name a file"):
        picture(str(tmp_path / "none.png"), 8)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad.png: cannot be read as an image"):
        picture(str(tmp_path / "bad.png"), 8)
