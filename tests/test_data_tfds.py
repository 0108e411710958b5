"""TFDS without TensorFlow: its own builders prepare, its own reader reads."""

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl.data import images, tfds
from jaxdl.data.idx import FashionMnist, Mnist, parse
from jaxdl.data.source import Arrays, Records
from jaxdl.data.tfds import Tfds
from jaxdl.errors import DataMissing, UserError

FASHION_MNIST = next((folder for folder in (
    Path("/usr/share/datasets/fashion-mnist"),
    Path(os.environ.get("JAXDL_FASHION_MNIST") or "/nonexistent")) if folder.is_dir()), None)
needs_fashion_mnist = pytest.mark.skipif(
    FASHION_MNIST is None, reason=
    "apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb DIR && "
    "export JAXDL_FASHION_MNIST=DIR/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def fabricate(directory: Path, *, file_format: str = "array_record", vary: bool = False,
              name: str = "shapes", version: str = "1.0.0") -> dict[str, list[np.ndarray]]:
    """Prepares 20 training and 5 test images of a data set with a bounding box and a caption."""
    import tensorflow_datasets as package

    rng = np.random.default_rng(3)
    made = {split: [rng.integers(0, 256, (12, 16 + i * vary, 3), np.uint8) for i in range(n)]
            for split, n in (("train", 20), ("test", 5))}
    as_version = version

    class Fabricated(package.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = package.core.Version(as_version)

        def _info(self) -> Any:
            size = (None, None, 3) if vary else (12, 16, 3)
            return package.core.DatasetInfo(builder=self, features=package.features.FeaturesDict({
                "picture": package.features.Image(shape=size),
                "kind": package.features.ClassLabel(names=["round", "square", "other"]),
                "caption": package.features.Text(),
                "box": package.features.BBoxFeature()}), disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(pictures) for split, pictures in made.items()}

        def _generate_examples(self, pictures: Any) -> Any:
            for i, pixels in enumerate(pictures):
                yield i, {"picture": encoded(pixels), "kind": i % 3, "caption": f"image {i}",
                          "box": package.features.BBox(0., 0., 1., 1.)}

    Fabricated.name = name
    Fabricated(data_dir=directory, file_format=file_format).download_and_prepare()
    return made


def shapes(directory: Path | None = None, **options: Any) -> Tfds:
    return Tfds(name="shapes", image="picture", label="kind", **options,
                directory=None if directory is None else str(directory))


def check(data: Tfds, split: str, expected: list[np.ndarray], labels: list[int]) -> None:
    source = data.open(split)
    batch = source.read(np.arange(source.size))
    np.testing.assert_array_equal(batch["image"], np.stack(expected))
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert batch["label"].tolist() == labels and sorted(batch) == ["image", "label"]


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str,
               in_memory: bool) -> None:
    made = fabricate(tmp_path / "tfds", file_format=file_format)
    monkeypatch.setattr(images, "IN_MEMORY", images.IN_MEMORY if in_memory else 0)
    data = shapes(train="train[:80%]")
    data.prepare()
    assert isinstance(data.open("train"), Arrays if in_memory else Records)
    train, kinds = made["train"], [i % 3 for i in range(20)]
    check(data, "train", train[:16], kinds[:16])
    check(data, "train[80%:]", train[16:], kinds[16:])
    check(data, "train[5:9]+test[:2]", train[5:9] + made["test"][:2], [*kinds[5:9], 0, 1])
    check(data, "test", made["test"], kinds[:5])
    assert data.names == ("round", "square", "other") and data.classes == 3
    assert data.splits == ("train", "test")
    record = data.fingerprint()
    assert record == shapes(tmp_path / "tfds", train="train[:80%]").fingerprint()
    assert record != shapes(tmp_path / "tfds", train="train[:75%]").fingerprint()


def test_images_of_many_sizes(tmp_path: Path) -> None:
    made = fabricate(tmp_path / "tfds", vary=True)
    with pytest.raises(UserError) as error:
        shapes().open("train")
    assert str(error.value) == ("Tfds: the images of shapes/1.0.0 vary in size; set size=PIXELS to "
                                "resize and crop them.")
    batch = shapes(size=8).open("train").read(np.arange(20))
    assert batch["image"].shape == (20, 8, 8, 3)
    np.testing.assert_array_equal(
        batch["image"][7], images.decode(encoded(made["train"][7]), size=8, channels=3))


def test_finds_what_is_prepared_without_importing_tfds(tmp_path: Path) -> None:
    fabricate(tmp_path / "tfds")
    code = ("import sys; from jaxdl.data.tfds import Tfds, prepared; Tfds(name='shapes').prepare();"
            "assert Tfds(name='shapes', label='kind').classes == 3; assert prepared('no') is None;"
            "sys.exit('tensorflow_datasets' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_versions_and_configs(tmp_path: Path) -> None:
    root = tmp_path / "tfds"
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        fabricate(root, version=version)
    (root / "shapes" / "incomplete.XYZ_2.0.0").mkdir()
    assert tfds.prepared("shapes") == root / "shapes" / "1.10.0"
    assert tfds.prepared("shapes:1.9.0") == root / "shapes" / "1.9.0"
    assert tfds.prepared("shapes:3.0.0") is None and tfds.prepared("none") is None
    shutil.copytree(root / "shapes" / "1.0.0", root / "sets" / "large" / "1.0.0")
    assert tfds.prepared("sets") == tfds.prepared("sets/large") == root / "sets/large/1.0.0"
    shutil.copytree(root / "shapes" / "1.0.0", root / "sets" / "small" / "1.0.0")
    with pytest.raises(UserError) as error:
        tfds.prepared("sets")
    assert str(error.value) == (f"Tfds: name='sets': {root}/sets has the configs large, small; "
                                "name one, 'sets/large'.")


def test_one_line_for_each_mistake(tmp_path: Path) -> None:
    fabricate(tmp_path / "tfds")
    folder = tmp_path / "tfds" / "shapes" / "1.0.0"

    def message(data: Tfds, split: str = "train") -> str:
        with pytest.raises(UserError) as error:
            data.open(split)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert message(Tfds(name="shapes", image="pictures", label="kind")) == (
        "Tfds: image='pictures': shapes/1.0.0 has no such feature, only box, caption, kind, "
        "picture. Did you mean 'picture'?")
    assert message(Tfds(name="shapes", image="caption", label="kind")) == (
        "Tfds: image='caption' of shapes/1.0.0 is not an image of integers.")
    assert message(Tfds(name="shapes", image="picture", label="caption")) == (
        "Tfds: label='caption' of shapes/1.0.0 is not a class.")
    source = Tfds(name="shapes", image="picture", label=None).open("test")
    batch = source.read(np.arange(source.size))
    assert batch["label"].tolist() == [-1] * 5 and batch["image"].shape == (5, 12, 16, 3)
    for split in ("tset", "train[:x%]", "train[:200]"):
        assert message(shapes(), split) == (
            f"Tfds: no split {split!r} in shapes/1.0.0, only 'train', 'test' and their parts, "
            "'train[:80%]'.")
    record = next(folder.glob("shapes-train*"))
    record.rename(record.with_suffix(".away"))
    assert message(shapes()) == f"{record}: missing; delete {folder} and prepare it again."
    info = folder / "dataset_info.json"
    known = json.loads(info.read_text())
    info.write_text(json.dumps({**known, "fileFormat": "tfrecord"}))
    assert message(shapes()) == (
        f"{folder}: prepared as tfrecord, which only TensorFlow reads; prepare it as array_record "
        "in another folder: pip install tensorflow-cpu && python -c \"import tensorflow_datasets "
        "as tfds; tfds.builder('shapes', data_dir='DIRECTORY', file_format='array_record')"
        ".download_and_prepare()\"")
    info.write_text("{")
    assert message(shapes()).startswith(f"{info}: cannot be read (Expecting property name")


def test_a_broken_image(tmp_path: Path) -> None:
    import tensorflow_datasets as package

    fabricate(tmp_path / "tfds")
    features: Any = package.builder_from_directory(
        tmp_path / "tfds" / "shapes" / "1.0.0").info.features
    folder = shutil.copytree(tmp_path / "tfds", tmp_path / "copy") / "shapes" / "1.0.0"
    from array_record.python.array_record_module import ArrayRecordWriter

    path = next(folder.glob("shapes-test*"))
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(5):
        picture = encoded(np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8))
        writer.write(features.serialize_example(features.encode_example({
            "picture": picture[:300] if i == 3 else picture, "kind": 0, "caption": "",
            "box": package.features.BBox(0., 0., 1., 1.)})))
    writer.close()
    with pytest.raises(UserError) as error:
        shapes(tmp_path / "copy").open("test")
    assert str(error.value).startswith(f"{path}: record 3 holds a broken image (")
    assert str(error.value).endswith(f"); delete {folder} and prepare it again.")


@pytest.mark.parametrize("name", tfds.PREPARED_HERE)
def test_what_is_prepared_here_is_what_tfds_downloads(name: str) -> None:
    """Its builders want exactly the files that they are given."""
    import tensorflow_datasets as package

    infos = package.builder(name).url_infos
    assert infos and all(info.filename and info.checksum for info in infos.values())
    if name == "fashion_mnist":
        assert {i.filename: i.checksum for i in infos.values()} == FashionMnist.sha256
        assert {url.rsplit("/", 1)[0] + "/" for url in infos} == {FashionMnist.url}
    if name == "mnist":
        assert {i.filename: i.checksum for i in infos.values()} == Mnist.sha256
        assert {url.rsplit("/", 1)[0] + "/" for url in infos} == {Mnist.url}


def test_what_needs_tensorflow_says_how(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as error:
        Tfds(name="imagenet2012").prepare()
    assert str(error.value) == (
        f"Tfds: 'imagenet2012' is not in {tmp_path}/tfds; prepare it once: pip install "
        "tensorflow-cpu && python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder('imagenet2012', data_dir='{tmp_path}/tfds', file_format='array_record')"
        ".download_and_prepare()\"")


def test_no_network_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets  # noqa: F401  (its import is not what is timed)

    from jaxdl.data import fetch

    def blocked(*args: Any, **kwargs: Any) -> Any:
        time.sleep(9)
        raise OSError

    monkeypatch.setattr(fetch.socket, "getaddrinfo", blocked)
    begin = time.monotonic()
    with pytest.raises(DataMissing) as error:
        Tfds(name="cifar10").prepare()
    assert time.monotonic() - begin < 4
    assert str(error.value) == ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz: cannot "
                                "be reached from this machine.")


def restored(folder: Path) -> Path:
    """Fashion-MNIST's original files: Debian's without the name and time in the gzip header."""
    assert FASHION_MNIST is not None
    folder.mkdir(parents=True)
    for part, changed in (("train", 1504176606), ("t10k", 1504176627)):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            body = (FASHION_MNIST / f"{name}.gz").read_bytes()[10:]
            (folder / f"{name}.gz").write_bytes(
                b"\x1f\x8b\x08\x08" + struct.pack("<I", changed) + b"\x00\x03" + name.encode()
                + b"\0" + body)
    return folder


@needs_fashion_mnist
def test_fashion_mnist_for_real(tmp_path: Path) -> None:
    """TFDS's builder takes the original files, whose checksums it knows; read back, each pixel is
    that of the IDX files. All as a user does it, and with no TensorFlow."""
    assert FASHION_MNIST is not None
    files = restored(tmp_path / "data" / "fashion_mnist")
    data = Tfds(name="fashion_mnist", mean=(0.2860,), std=(0.3530,))
    data.prepare()
    assert "tensorflow" not in sys.modules
    for split, part, count in (("train[:20%]", "train", 12_000), ("test", "t10k", 10_000)):
        source = data.open(split)
        image = parse(FASHION_MNIST / f"{part}-images-idx3-ubyte.gz")[..., None]
        label = parse(FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz")
        order = tfds.original_order(split.split("[")[0], len(label))
        here = order < count  # The images of the file that are in this part of the split.
        assert source.arrays is not None and source.size == here.sum() == count
        np.testing.assert_array_equal(source.arrays["image"][order[here]], image[here])
        np.testing.assert_array_equal(source.arrays["label"][order[here]], label[here])
    assert not list((tmp_path / "data").glob("tmp*"))
    shutil.rmtree(files)

    # A file that is not the original one is refused by TFDS's own check.
    shutil.rmtree(tmp_path / "tfds")
    restored(files)
    (files / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(UserError, match="a file is not the original one: ") as error:
        data.prepare()
    assert "\n" not in str(error.value) and "t10k-labels" in str(error.value)


@needs_fashion_mnist
def test_fashion_mnist_of_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FashionMnist(directory=str(FASHION_MNIST))
    train, test = data.open("train"), data.open("test")
    assert (train.size, test.size) == (60_000, 10_000)
    assert train.arrays is not None
    assert np.bincount(train.arrays["label"]).tolist() == [6000] * 10
    pixels = train.arrays["image"][:10_000] / 255
    assert abs(pixels.mean() - data.mean[0]) < 0.003 and abs(pixels.std() - data.std[0]) < 0.003
