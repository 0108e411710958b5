"""Super-resolution: fidelity against scikit-image, what is made smaller, networks, photographs."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdl import config
from jaxdl.data.photographs import PhotographFolder, Photographs, cut, pixels
from jaxdl.errors import DataMissing, UserError
from jaxdl.fidelity import psnr, ssim
from jaxdl.models.super_resolution import ESPCN, SRCNN, enlarged
from jaxdl.tasks.super_resolution import SuperResolution
from tests.tiny import state_of

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
BATCH = {"image": jax.random.uniform(KEY, (3, 24, 18, 1)), "index": jnp.arange(3),
         "mask": jnp.array([1., 1., 0.])}
TASK = SuperResolution(model=ESPCN(scale=3, channels=(4, 3)), scale=3)


def test_fidelity_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="pip install scikit-image")
    a = RANDOM.uniform(size=(2, 40, 33, 3)).astype(np.float32)
    a = (a + np.roll(a, 1, 1) + np.roll(a, 1, 2)) / 3
    b = np.clip(a + 0.1 * RANDOM.normal(size=a.shape), 0, 1).astype(np.float32)
    found = jax.jit(lambda: (psnr(a, b), ssim(a, b), psnr(255 * a, 255 * b, 255.),
                             ssim(255 * a, 255 * b, 255.)))()
    for i in range(2):
        p = metrics.peak_signal_noise_ratio(a[i], b[i], data_range=1.)
        s = metrics.structural_similarity(
            a[i].astype(float), b[i].astype(float), data_range=1., channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        np.testing.assert_allclose([x[i] for x in found], [p, s, p, s], rtol=1e-4)


def test_fidelity_of_what_is_known() -> None:
    a = np.full((1, 16, 16, 1), 0.5, np.float32)
    np.testing.assert_allclose(psnr(a, a + 0.1), 20, rtol=1e-5)
    np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-6)
    b = a + 0.1  # Of images without structure the means alone count.
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-4)
    assert np.isinf(psnr(a, a))


def test_a_fresh_network_interpolates_and_both_learn() -> None:
    image = jnp.asarray(RANDOM.uniform(size=(4, 2, 2, 1)), jnp.float32)
    image = jax.image.resize(image, (4, 24, 24, 1), "nearest")  # edges, which interpolation blurs
    batch = {"image": image, "index": jnp.arange(4), "mask": jnp.ones(4)}
    for model in (ESPCN(scale=3, channels=(8, 4)), SRCNN(scale=3, channels=(4, 4),
                                                         kernels=(5, 3, 3))):
        task = SuperResolution(model=model, scale=3)
        tx = optax.adam(1e-2)
        state = jax.jit(lambda task=task, tx=tx: task.init(KEY, batch, tx))()
        evaluate = jax.jit(task.evaluate)
        before = evaluate(state, batch)
        assert abs(before["psnr"].value() - before["bicubic_psnr"].value()) < 0.1
        state = jax.jit(lambda s, task=task, tx=tx: jax.lax.fori_loop(
            0, 240, lambda _, s: task.step(s, batch, tx)[0], s))(state)
        after = evaluate(state, batch)
        assert after["psnr"].value() > after["bicubic_psnr"].value() + 0.5
        assert after["ssim"].value() > after["bicubic_ssim"].value()
        assert after["bicubic_psnr"].value() == before["bicubic_psnr"].value()
        assert config.from_json(config.to_json(task)) == task


def test_what_is_measured() -> None:
    """Clipped, without a border, and without what is masked."""
    state = state_of(TASK, BATCH)
    found = jax.jit(TASK.evaluate)(state, BATCH)
    inner = np.asarray(BATCH["image"])[:2, 3:-3, 3:-3]
    low = jax.image.resize(BATCH["image"], (3, 8, 6, 1), "bicubic")
    large = np.clip(enlarged(low, 3), 0, 1)[:2, 3:-3, 3:-3]
    expected = -10 * np.log10(np.square(large - inner).mean((1, 2, 3))).mean()
    assert found["bicubic_psnr"].value() == pytest.approx(float(expected), rel=1e-4)
    bad = {**BATCH, "image": BATCH["image"].at[2].set(jnp.nan)}
    chex.assert_trees_all_close(found, jax.jit(TASK.evaluate)(state, bad), rtol=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"scale": 4}, r"task.scale=4: images of 24 x 18 cannot be divided by it"),
    ({"scale": 2}, r"task.model: makes images \(36, 27, 1\) of \(12, 9, 1\), expected \(24, 18")])
def test_mistakes(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, optax.sgd(1.)))


# Photographs.


def test_a_photograph_is_shrunk_and_cut(tmp_path: Path) -> None:
    image = RANDOM.integers(0, 255, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    whole = pixels(tmp_path / "a.png", 3, 1)
    np.testing.assert_array_equal(whole, image)
    half = pixels(tmp_path / "a.png", 3, 2)
    assert half.shape == (4, 6, 3)
    np.testing.assert_allclose(half[1, 2], image[2:4, 4:6].mean((0, 1)), atol=0.51)
    squares = cut(whole, 4)
    assert squares.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(squares[4], image[4:8, 4:8])


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        Image.fromarray(np.full((20, 20), i, np.uint8)).save(tmp_path / "in" / f"{i}.png")
    data = PhotographFolder(path=str(tmp_path), size=8, shrink=2, test_percent=40)
    data.prepare()
    train, test = (data.read(split) for split in ("train", "test"))
    assert train["image"].shape[1:] == (8, 8, 1)
    assert len(train["image"]) + len(test["image"]) == 12  # one square of each
    assert not set(train["image"][:, 0, 0, 0]) & set(test["image"][:, 0, 0, 0])
    assert len(data.names) == 12 and train["label"].max() < 12
    assert len(data.fingerprint()) == 16
    with pytest.raises(UserError, match=r"size=64: no photograph of the split 'train' is as large"):
        dataclasses.replace(data, size=64).read("train")
    with pytest.raises(DataMissing, match=r"path=.*/none: there is no such folder"):
        dataclasses.replace(data, path=str(tmp_path / "none")).prepare()
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad.png: cannot be read as an image"):
        for split in ("train", "test"):
            dataclasses.replace(data, test_percent=50).read(split)


def test_the_photographs_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real where they were brought: JAXDL_PHOTOGRAPHS is a data folder that has both."""
    folder = os.environ.get("JAXDL_PHOTOGRAPHS")
    if not folder:
        pytest.skip("JAXDL_PHOTOGRAPHS names no data folder; Photographs().prepare() fills one")
    monkeypatch.setenv("JAXDL_DATA", folder)
    data = Photographs(size=96)
    data.prepare()
    assert [len(data.read(split)["image"]) for split in ("train", "test")] == [1144, 157]
    assert data.names[0] == "BytheWater" and data.names[11] == "astronaut"
