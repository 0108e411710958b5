"""Videos of digits that move, and the network that predicts them, against NumPy."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.data.digits import Digits
from jaxdl.data.moving_digits import MovingDigits
from jaxdl.errors import UserError
from jaxdl.models.conv_lstm import ConvLSTM
from jaxdl.tasks.video import NextFrame
from tests.tiny import state_of

KEY = jax.random.key(0)
DATA = MovingDigits(data=Digits(size=8, channels=1), videos=30, size=12, frames=8, digits=1,
                    shrink=2, speed=2.)
TASK = NextFrame(model=ConvLSTM(channels=(3,), patch=1), given=2)
BATCH = {"video": jax.random.uniform(KEY, (3, 5, 4, 4, 1)), "index": jnp.arange(3),
         "mask": jnp.array([1., 1., 0.])}


def test_a_digit_moves_in_a_line_and_bounces() -> None:
    """The centre of brightness of each frame lies on a folded line, to a pixel."""
    source: Any = DATA.open("train")
    video = source.read(np.arange(30))["video"]
    assert video.shape == (30, 8, 12, 12, 1) and video.dtype == np.uint8
    total = video.astype(float).sum((2, 3, 4))
    assert (total == total[:, :1]).all() and (total > 0).all()  # no digit is cut or changed
    grid = np.arange(12)
    row = (video[..., 0].sum(3) * grid).sum(2) / total
    column = (video[..., 0].sum(2) * grid).sum(2) / total
    step = np.hypot(np.diff(row), np.diff(column))
    assert step.max() <= 2 + 2 ** 0.5 and np.median(step) == pytest.approx(2, abs=0.3)
    turned = (np.sign(np.diff(row)) * np.sign(np.diff(row))[:, :1] < 0).any()
    assert turned  # Some meet an edge.


def test_videos_are_always_the_same_and_of_the_splits_own_digits() -> None:
    train, again, test = (DATA.open(s).read(np.arange(6)) for s in ("train", "train", "test"))
    np.testing.assert_array_equal(train["video"], again["video"])
    assert (train["video"] != test["video"]).any() and DATA.open("test").size == 6
    two = dataclasses.replace(DATA, digits=2)
    assert two.open("train").read(np.arange(4))["label"].shape == (4, 2)
    assert two.fingerprint() != DATA.fingerprint()
    with pytest.raises(UserError, match=r"size=4: a digit of 4 x 4 has no room to move"):
        dataclasses.replace(DATA, size=4).open("train")


def test_the_network_is_that_of_the_equations() -> None:
    """One layer against loops; no frame depends on a later one."""
    model = ConvLSTM(channels=(2,), patch=1, kernel=3)
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 1)).astype(np.float32)
    variables = jax.jit(lambda: model.init(KEY, x, False))()
    apply = jax.jit(lambda x: model.apply(variables, x, False))
    p = jax.tree.map(np.asarray, variables["params"])

    def conv(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        return np.stack([[np.einsum("abc,abco->o", padded[i:i + 3, j:j + 3], kernel)
                          for j in range(4)] for i in range(4)])

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    h = c = np.zeros((4, 4, 2))
    expected = []
    for frame in x[0]:
        gates = (conv(frame, p["input1"]["kernel"]) + p["input1"]["bias"]
                 + conv(h, p["state1"]["kernel"]))
        i, f, o, g = np.split(gates, 4, -1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h @ p["draw"]["kernel"][0, 0] + p["draw"]["bias"])
    found = apply(x)
    np.testing.assert_allclose(found[0], np.stack(expected), rtol=1e-4, atol=1e-5)
    changed = x.copy()
    changed[0, 2] += 1.
    np.testing.assert_array_equal(apply(changed)[:, :2], found[:, :2])
    assert (apply(changed)[:, 2] != found[:, 2]).any()


def test_what_is_measured() -> None:
    state = state_of(TASK, BATCH)
    found = jax.jit(TASK.evaluate)(state, BATCH)
    video = np.asarray(BATCH["video"])
    logits = np.asarray(jax.jit(lambda: TASK.model.apply(
        {"params": state.params}, BATCH["video"][:, :-1], False))())[:2, 1:]
    wanted, before, p = video[:2, 2:], video[:2, 1:-1], 1 / (1 + np.exp(-logits))
    for name, expected in (
            ("loss", -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean()),
            ("error", ((p - wanted) ** 2).mean()), ("copy_error", ((before - wanted) ** 2).mean())):
        np.testing.assert_allclose(found[name].value(), expected, rtol=1e-4)
    bad = {**BATCH, "video": BATCH["video"].at[2].set(jnp.nan)}
    chex.assert_trees_all_close(found, jax.jit(TASK.evaluate)(state, bad), rtol=1e-6)
    with pytest.raises(UserError, match=r"task.given=5: videos of 5 frames leave none"):
        state_of(dataclasses.replace(TASK, given=5), BATCH)
    assert config.from_json(config.to_json(TASK)) == TASK


def test_it_learns_a_movement_and_goes_on_with_it() -> None:
    """A row of pixels that moves down, cyclically."""
    task = NextFrame(model=ConvLSTM(channels=(8,), patch=1), given=2)
    start = jnp.arange(6)
    frames = (start[:, None] + jnp.arange(6)) % 6  # [B, T]: which row is bright
    video = jnp.broadcast_to(jax.nn.one_hot(frames, 6)[..., None, None], (6, 6, 6, 4, 1))
    batch = {"video": video, "index": jnp.arange(6), "mask": jnp.ones(6)}
    tx = optax.adam(2e-2)
    state = jax.jit(lambda: task.init(KEY, batch, tx))()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 120, lambda _, s: task.step(s, batch, tx)[0], s))(state)
    found = jax.jit(task.evaluate)(state, batch)
    assert found["error"].value() < 0.2 * found["copy_error"].value()
    own = jax.jit(lambda s: task.continued(s, video[:, :3], 2))(state)
    chex.assert_shape(own, (6, 5, 6, 4, 1))
    np.testing.assert_array_equal(own[:, :3], video[:, :3])
    assert (own[:, 4].sum((2, 3)).argmax(-1) == frames[:, 4]).mean() > 0.6
