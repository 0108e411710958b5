"""IDX files: every way in which they can be wrong, and where MNIST's are looked for."""

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jaxdl.data import fetch as fetching
from jaxdl.data import tfds
from jaxdl.data.idx import FashionMnist, Idx, Mnist, parse
from jaxdl.errors import DataMissing, UserError

RANDOM = np.random.default_rng(0)
CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array: np.ndarray) -> bytes:
    return (bytes([0, 0, CODES[array.dtype.name], array.ndim])
            + struct.pack(f">{array.ndim}I", *array.shape)
            + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write(folder: Path, *, dot: str = "-", gz: bool = True,
          parts: tuple[str, str] = ("train", "t10k")) -> dict[str, dict[str, np.ndarray]]:
    """Writes the four files; returns what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, n in zip(parts, (30, 10), strict=True):
        image = RANDOM.integers(0, 256, (n, 28, 28), np.uint8)
        label = RANDOM.integers(0, 10, n, np.uint8)
        for kind, array in (("images", image), ("labels", label)):
            name = f"{part}-{kind}{dot}idx{array.ndim}-ubyte"
            content = idx(array)
            (folder / (name + ".gz" * gz)).write_bytes(
                gzip.compress(content, mtime=0) if gz else content)
        made["train" if part == parts[0] else "test"] = {"image": image[..., None], "label": label}
    return made


def same(data: Mnist | Idx, expected: dict[str, dict[str, np.ndarray]]) -> bool:
    for split, arrays in expected.items():
        source = data.open(split)
        assert source.arrays is not None and source.arrays["label"].dtype == np.int32
        for name, array in arrays.items():
            np.testing.assert_array_equal(source.arrays[name], array)
    return True


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(FashionMnist, "installed", ())
    for cls in (Mnist, FashionMnist):
        monkeypatch.setattr(cls, "url", "http://127.0.0.1:1/")


@pytest.mark.parametrize("dtype", CODES)
def test_every_type(tmp_path: Path, dtype: str) -> None:
    array = (RANDOM.normal(size=(3, 4, 5)) * 50).astype(dtype)
    (tmp_path / "x").write_bytes(idx(array))
    np.testing.assert_array_equal(parse(tmp_path / "x"), array)


good = idx(np.zeros((3, 4), np.uint8))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not an IDX file: it begins with '', expected '0000', a type and the number of "
          "dimensions"),
    (b"\x89PNG....", "not an IDX file: it begins with '89504e47', expected '0000', a type and the "
                     "number of dimensions"),
    (b"\0\0\x07\x01" + good[4:], "not an IDX file: it begins with '00000701', expected '0000', a "
                                 "type and the number of dimensions"),
    (good[:-1], "truncated: 23 bytes, expected 24 for the shape (3, 4)"),
    (good + b"x", "too long: 25 bytes, expected 24 for the shape (3, 4)"),
    (good[:9], "truncated: 9 bytes, expected 15 for the shape (3,)"),
    (gzip.compress(good, mtime=0)[:-9], "the gzip file is damaged (Compressed file ended before "
                                        "the end-of-stream marker was reached)"),
])
def test_wrong_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        parse(path)
    assert str(error.value) == f"{path}: {message}; delete it and bring it again."


@pytest.mark.parametrize("dot", "-.")
@pytest.mark.parametrize("gz", [True, False])
def test_own_files(tmp_path: Path, dot: str, gz: bool) -> None:
    made = write(tmp_path, dot=dot, gz=gz, parts=("emnist-train", "emnist-test"))
    data = Idx(directory=str(tmp_path), train="emnist-train", test="emnist-test", classes=10)
    data.prepare()
    assert same(data, made) and data.classes == 10


def labels(folder: Path, array: np.ndarray) -> Path:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(array)))
    return path


def images(folder: Path, array: np.ndarray) -> Path:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(array)))
    return path


@pytest.mark.parametrize(("spoil", "message"), [
    (partial(labels, array=np.zeros(29, np.uint8)),
     "29 labels for 30 images in train-images-idx3-ubyte.gz."),
    (partial(labels, array=np.array([3] * 29 + [10], np.uint8)),
     "record 29 has the label 10, expected 0 to 9."),
    (partial(labels, array=np.array([3] * 29 + [-1], np.int8)),
     "record 29 has the label -1, expected 0 to 9."),
    (partial(labels, array=np.zeros((30, 2), np.uint8)),
     "expected labels, integers [N], found uint8 (30, 2)."),
    (partial(images, array=np.zeros(30, np.uint8)),
     "expected images, uint8 [N, H, W] or [N, H, W, C], found uint8 (30,)."),
])
def test_wrong_content(tmp_path: Path, spoil: Callable[[Path], Path], message: str) -> None:
    write(tmp_path)
    path = spoil(tmp_path)
    with pytest.raises(UserError) as error:
        Mnist(directory=str(tmp_path)).open("train")
    assert str(error.value) == f"{path}: {message}"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Idx(directory=f"{tmp_path}/no").prepare()
    assert str(error.value) == f"Idx: directory={tmp_path}/no: there is no such folder."
    with pytest.raises(DataMissing) as error:
        Idx(directory=str(tmp_path)).open("train")
    assert str(error.value) == f"{tmp_path}: no file train-images-idx3-ubyte[.gz]."
    with pytest.raises(DataMissing) as error:
        Idx(directory=str(tmp_path), train="emnist-train").prepare()
    assert str(error.value) == f"{tmp_path}: no file emnist-train-images-idx3-ubyte[.gz]."
    with pytest.raises(UserError, match=r"^Mnist: directory=.* holds neither the files train-"):
        Mnist(directory=str(tmp_path)).prepare()


def test_missing_everywhere_names_the_ways(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as error:
        FashionMnist().prepare()
    files = ", ".join(FashionMnist.sha256)
    assert str(error.value) == (
        "FashionMnist: not on this machine (http://127.0.0.1:1/train-images-idx3-ubyte.gz: cannot "
        f"be reached from this machine.) Bring it in one of these ways: put {files} into "
        f"{tmp_path}/data/fashion_mnist or name their folder by directory=FOLDER; apt install "
        "dataset-fashion-mnist (or apt-get download dataset-fashion-mnist && dpkg -x "
        "dataset-fashion-mnist_*.deb FOLDER, and then "
        "directory=FOLDER/usr/share/datasets/fashion-mnist); copy a TFDS folder 'fashion_mnist' to "
        f"{tmp_path}/tfds; or run once with a network.")


@pytest.mark.parametrize("place", ["data", "directory", "installed"])
def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(FashionMnist, "installed", (str(tmp_path / "installed"),))
    folder = tmp_path / place / ("fashion_mnist" if place == "data" else "")
    made = write(folder)
    data = FashionMnist(directory=str(folder) if place == "directory" else None)
    data.prepare()
    assert same(data, made) and data.classes == 10 and len(data.fingerprint()) == 16
    other = FashionMnist(directory=str(folder))
    assert other.fingerprint() == data.fingerprint()


def test_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(tmp_path / "served")
    monkeypatch.setattr(fetching, "PAUSE", 0.01)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(Mnist, "url", f"http://127.0.0.1:{server.server_address[1]}/")
        with pytest.raises(UserError, match=r"^train-images-.* from http.* expected 440fca"):
            Mnist().prepare()
        monkeypatch.setattr(Mnist, "sha256", {
            name: hashlib.sha256((tmp_path / "served" / name).read_bytes()).hexdigest()
            for name in Mnist.sha256})
        Mnist().prepare()
        server.shutdown()
    assert same(Mnist(), made)
    assert (tmp_path / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz").exists()


def test_from_tfds(tmp_path: Path) -> None:
    """TFDS's own builder, on fabricated arrays; its shuffled examples come back in file order."""
    made = write(tmp_path / "files")
    fabricate_mnist(tmp_path / "tfds", made)
    assert tfds.prepared("mnist") == tmp_path / "tfds" / "mnist" / "3.0.1"
    assert same(Mnist(), made) and same(Mnist(directory=str(tmp_path / "tfds")), made)
    assert Mnist().fingerprint() == Mnist(directory=str(tmp_path / "files")).fingerprint()


def test_a_tfrecord_folder_is_not_in_the_way(tmp_path: Path) -> None:
    """Many have one from their days with TensorFlow."""
    fabricate_mnist(tmp_path / "tfds", write(tmp_path / "files"))
    info = tmp_path / "tfds" / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataMissing, match=r"^Mnist: not on this machine"):
        Mnist().prepare()
    with pytest.raises(UserError, match=r"nor TFDS's folder 'mnist' as array_record\.$"):
        Mnist(directory=str(tmp_path / "tfds")).prepare()


def fabricate_mnist(directory: Path, made: dict[str, dict[str, np.ndarray]]) -> None:
    import io

    from PIL import Image
    from tensorflow_datasets.image_classification.mnist import MNIST

    class Fabricated(MNIST, skip_registration=True):
        name = "mnist"

        def _split_generators(self, dl_manager: object) -> dict[str, object]:
            return {split: self._generate_examples(arrays) for split, arrays in made.items()}

        def _generate_examples(self, arrays: dict[str, np.ndarray]) -> object:  # pyright: ignore
            for i, (image, label) in enumerate(zip(arrays["image"], arrays["label"], strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(image[..., 0]).save(buffer, "png")
                yield i, {"image": buffer.getvalue(), "label": int(label)}

    Fabricated(data_dir=directory, file_format="array_record").download_and_prepare()
