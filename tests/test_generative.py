"""Grids of samples, and distances between them and the data, against what is known of them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdl import cli, generative, parallel
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays
from jaxdl.errors import UserError
from jaxdl.generative import (
    SampleQuality,
    Samples,
    balance,
    check_classifier,
    frechet_distance,
    grid,
    path_between,
    pixels,
    precision_recall,
    turns,
)
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.tasks.pixels import Pixels
from jaxdl.tasks.vae import ImportanceWeighted
from jaxdl.train import validate
from tests import tiny

RANDOM = np.random.default_rng(0)


def test_the_frechet_distance_of_normal_features() -> None:
    """For covariances that commute it is the sum of (sqrt(a) - sqrt(b))^2 besides the means."""
    x = RANDOM.normal(size=(200_000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # exact
    turn, _ = np.linalg.qr(RANDOM.normal(size=(3, 3)))
    a, b = np.array([1., 4., 9.]), np.array([4., 4., 1.])
    found = frechet_distance((x * np.sqrt(a)) @ turn, (x * np.sqrt(b)) @ turn + [1., 0., 2.])
    assert found == pytest.approx(1 + 4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-6)
    assert abs(frechet_distance(x, x)) < 1e-8
    flat = np.concatenate([x[:100], np.zeros((100, 2))], 1)  # singular covariances
    assert abs(frechet_distance(flat, flat)) < 1e-8


def test_the_frechet_distance_is_scipys() -> None:
    from scipy.linalg import sqrtm

    a, b = RANDOM.normal(size=(50, 4)), RANDOM.normal(size=(60, 4)) @ RANDOM.normal(size=(4, 4))
    cov = [np.cov(x, rowvar=False) for x in (a, b)]
    root: Any = sqrtm(cov[0] @ cov[1])
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov[0] + cov[1] - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_precision_and_recall() -> None:
    """Samples of one of two clusters are good and miss half; strewn ones are bad."""
    two = np.concatenate([RANDOM.normal(size=(300, 2)), RANDOM.normal(size=(300, 2)) + 50])
    one = RANDOM.normal(size=(300, 2))
    precision, recall = precision_recall(two, one)
    assert precision > 0.9 and 0.4 < recall <= 0.5
    precision, recall = precision_recall(one, 500 + two)
    assert precision == recall == 0
    # By hand: the manifold of 0, 1, 3, 7 with k = 1 has the radii 1, 1, 2, 4.
    line = np.array([[0.], [1.], [3.], [7.]])
    assert precision_recall(line, np.array([[-2.], [4.9], [11.], [12.]]), k=1)[0] == 0.5


def test_balance() -> None:
    assert balance(np.full(4, 0.25)) == pytest.approx(1)
    assert balance(np.array([0.5, 0.5, 0., 0.])) == pytest.approx(0.5)
    assert balance(np.array([1., 0.])) == 0


def test_a_grid() -> None:
    images = np.arange(3)[:, None, None, None] / 2 * np.ones((3, 2, 2, 1))
    sheet = grid(images, 2)
    assert sheet.shape == (5, 5, 1) and sheet.dtype == np.uint8
    assert (sheet[:2, 2] == 255).all() and (sheet[3:, 3:] == 255).all()  # the line, an empty place
    assert (sheet[:2, :2] == 0).all() and (sheet[:2, 3:] == 128).all()
    assert (sheet[3:, :2] == 255).all()


def test_a_path_between_numbers_keeps_their_length() -> None:
    a, b = jnp.array([[3., 0.], [1., 1.]]), jnp.array([[0., 3.], [-1., 1.]])
    path = np.asarray(path_between(a, b, 5)).reshape(2, 5, 2)
    np.testing.assert_allclose(path[:, 0], a, atol=1e-5)
    np.testing.assert_allclose(path[:, -1], b, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), [[3.] * 5, [2 ** 0.5] * 5], rtol=1e-4)
    np.testing.assert_allclose(path[0, 2], [4.5 ** 0.5, 4.5 ** 0.5], rtol=1e-4)
    same = path_between(a, a, 3)
    np.testing.assert_allclose(same, np.repeat(a, 3, 0), rtol=1e-3)


def test_normalisation_is_taken_back() -> None:
    source: Any = Digits(size=8, channels=1, mean=(0.3,), std=(0.2,)).open("test")
    image = source.read(np.arange(4))["image"]
    batch = {"image": image, "index": jnp.arange(4), "mask": jnp.ones(4)}
    given = source.transform(batch, jax.random.key(0))["image"]
    np.testing.assert_allclose(pixels(given, source), image / 255 if image.dtype == np.uint8
                               else image, atol=1e-6)


def test_test_images_are_of_all_classes_whatever_their_order(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images sorted by class, as some data sets are, the first ones would be of one alone."""
    seen: list[Any] = []

    def classifier(folder: str, step: str) -> Any:
        return lambda images: (images.reshape(len(images), -1), jnp.zeros((len(images), 2)))

    def compared(real: Any, made: Any, k: int = 3) -> tuple[float, float]:
        seen.append(real)
        return 0., 0.

    monkeypatch.setattr(generative, "classified", classifier)
    monkeypatch.setattr(generative, "precision_recall", compared)
    image = np.repeat(np.arange(10, dtype=np.uint8), 40)[:, None, None, None] * np.ones(
        (1, 2, 2, 1), np.uint8)
    source = Arrays(arrays={"image": image})
    context: Any = SimpleNamespace(
        name="quality", source=lambda split: source, compiled={}, bound=None, knobs=None,
        poll=lambda: None, devices=SimpleNamespace(replicated=None))
    task: Any = SimpleNamespace(sample=lambda state, key, count: jax.random.uniform(
        key, (count, 2, 2, 1)))
    SampleQuality(classifier="", samples=100, neighbours=50)(task, (), context)
    real, = seen
    assert len(real) == 50 and set(np.round(255 * real[:, 0]).astype(int)) == set(range(10))


def test_a_missing_classifier_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classifier=.*/no: no run directory; train it: python"):
        check_classifier("SampleQuality", str(tmp_path / "no"))


def test_what_does_not_suit_is_told_before_the_run() -> None:
    for evaluator in (Samples(), SampleQuality(classifier="no")):
        with pytest.raises(UserError, match=r"Samp\w+: Classification does not draw samples"):
            evaluator.check(tiny.plain())
    with pytest.raises(UserError, match="ImportanceWeighted: Classification has no latent numbers"):
        ImportanceWeighted().check(tiny.plain())
    drawn = dataclasses.replace(
        tiny.plain(), data=Digits(), steps=1, task=Pixels(model=PixelCNN(), shape=(8, 8, 1)))
    with pytest.raises(UserError, match=r"data.mean=.*: this task needs pixels in \[0, 1\]: "
                                        r"\(0.0,\)"):
        validate(drawn, parallel.arrange(drawn.mesh))
    with pytest.raises(UserError, match=r"task.conditional=False: task.model.classes=3; expected"):
        dataclasses.replace(drawn.task, model=PixelCNN(classes=3)).check(drawn)
    assert turns(PixelCNN(), 3) is None
    np.testing.assert_array_equal(turns(PixelCNN(classes=2), 3), [0, 1, 0])


def test_a_run_writes_its_samples_and_measures_them(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a classifier and a VAE on the digits, from training to the report."""
    classifier, run = tmp_path / "classifier", tmp_path / "run"
    file = tmp_path / "vae.py"
    file.write_text(f'''
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays
from jaxdl.data.transforms import Binarise
from jaxdl.experiment import Experiment, Mesh
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.vae import VAE

def config():
    return Experiment(
        task=VAE(encoder=Encoder(features=8, channels=(4,)),
                 decoder=Decoder(size=8, channels=(4,)), latents=4),
        data=Digits(size=8, channels=1, augment=(Binarise(),), evaluation=(Binarise(),),
                    mean=(0.,), std=(1.,)),
        optimizer=Adam(learning_rate=Constant(peak=1e-2)),
        evals={{"samples": Samples(every=4, count=12), "quality": SampleQuality(
            classifier="{classifier}", samples=40, neighbours=30, batch_size=16)}},
        steps=6, batch_size=32, log_every=3, mesh=Mesh(data=1))
''')
    assert cli.main(["--experiment=mlp_digits", f"--workdir={classifier}", "--steps=8",
                     "--data.size=8", "--mesh.data=1", "--evals.test.every=8"]) == 0
    assert cli.main([f"--experiment={file}", f"--workdir={run}"]) == 0
    for folder in ("samples", "interpolations"):
        names = sorted(p.name for p in (run / folder).iterdir())
        assert names == ["samples_0000004.png", "samples_0000006.png"]
    with Image.open(run / "samples" / names[0]) as image:
        assert image.size == (8 * 65 - 1, 2 * 65 - 1)
    said = capsys.readouterr().out
    for name in ("frechet_distance", "precision", "recall", "classes", "balance", "pixel_mean"):
        assert name in said
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    for title in ("Samples", "Reconstructions", "From one to another"):
        assert title in page
    assert "No pictures" not in page and "No further" not in page
