"""MNIST, Fashion-MNIST, and whatever else comes in their IDX files.

An IDX file is: two zero bytes, a code for the type of its numbers, the number of dimensions, each
dimension as a big-endian int32, and the numbers (http://yann.lecun.com/exdb/mnist).
"""

import gzip
import io
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxdl.config import Size
from jaxdl.data import tfds
from jaxdl.data.fetch import data_folder, fetch
from jaxdl.data.images import Images, check_labels
from jaxdl.errors import DataMissing, UserError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
AGAIN = "delete it and bring it again."
KINDS = {"images": 3, "labels": 1}  # the dimensions of a file, which are in its name


def parse(path: Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = expanded(path, content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: the gzip file is damaged ({error}); {AGAIN}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise UserError(f"{path}: not an IDX file: it begins with {content[:4].hex()!r}, "
                        f"expected '0000', a type and the number of dimensions; {AGAIN}")
    dtype, start = np.dtype(TYPES[content[2]]), 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start][:(len(content) - 4) // 4 * 4],
                                                ">u4"))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(shape) != content[3] or len(content) != expected:
        what = "truncated" if len(content) < expected or len(shape) != content[3] else "too long"
        raise UserError(f"{path}: {what}: {len(content):,} bytes, expected {expected:,} for the "
                        f"shape {shape}; {AGAIN}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def expanded(path: Path, packed: bytes) -> bytes:
    """What a gzipped IDX file holds, if that is not more than its header says: a small file cannot
    fill the memory."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
            return head
        head += file.read(4 * head[3])
        shape = [int.from_bytes(head[i:i + 4]) for i in range(4, len(head), 4)]
        size = math.prod(shape) * np.dtype(TYPES[head[2]]).itemsize
        content = file.read(min(size, 1032 * len(packed)))  # Deflate cannot expand to more.
        if file.read(1):
            raise UserError(f"{path}: too long: it holds more than the {len(head) + size:,} bytes "
                            f"for the shape {tuple(shape)}.")
    return head + content


def find(folder: Path, part: str, kind: str) -> Path | None:
    """The file of a part ("train") and kind ("images") in a folder, by its usual names."""
    for dot in "-.":
        for end in ("", ".gz"):
            path = folder / f"{part}-{kind}{dot}idx{KINDS[kind]}-ubyte{end}"
            if path.is_file():
                return path
    return None


def files(folder: Path, part: str) -> list[Path]:
    """The files of the images and of the labels of one part."""
    found = []
    for kind in KINDS:
        path = find(folder, part, kind)
        if path is None:
            raise DataMissing(f"{folder}: no file {part}-{kind}-idx{KINDS[kind]}-ubyte[.gz].")
        found.append(path)
    return found


def read(folder: Path, part: str, classes: int) -> dict[str, np.ndarray]:
    """The images and labels of one part, checked against each other."""
    image_path, label_path = files(folder, part)
    image, label = parse(image_path), parse(label_path)
    if image.ndim not in (3, 4) or image.dtype != np.uint8:
        raise UserError(f"{image_path}: expected images, uint8 [N, H, W] or [N, H, W, C], found "
                        f"{image.dtype} {image.shape}.")
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise UserError(f"{label_path}: expected labels, integers [N], found {label.dtype} "
                        f"{label.shape}.")
    if len(image) != len(label):
        raise UserError(f"{label_path}: {len(label):,} labels for {len(image):,} images in "
                        f"{image_path.name}.")
    check_labels(label_path, label, classes)
    image = image if image.ndim == 4 else image[..., None]
    return {"image": image, "label": label.astype(np.int32)}


@dataclass(frozen=True, kw_only=True)
class Idx(Images):
    """Your own IDX files: "train-images-idx3-ubyte" and so on, gzipped or not.

    Attributes:
      directory: the folder of the four files.
      classes: how many classes there are.
      train: how the names of the two training files begin.
      test: how the names of the two test files begin.
    """

    directory: str
    classes: Size = 10  # pyright: ignore[reportIncompatibleMethodOverride]
    train: str = "train"
    test: str = "t10k"
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)

    def prepare(self) -> None:
        folder = Path(os.path.expanduser(self.directory))
        if not folder.is_dir():
            raise UserError(f"Idx: directory={self.directory}: there is no such folder.")
        for part in (self.train, self.test):
            files(folder, part)

    def read(self, split: str) -> dict[str, np.ndarray]:
        part = self.train if split == "train" else self.test
        return read(Path(os.path.expanduser(self.directory)), part, self.classes)


@dataclass(frozen=True, kw_only=True)
class Mnist(Images):
    """MNIST (LeCun et al. 1998): 28 x 28 grey digits, 60,000 to train and 10,000 to test.

    Attributes:
      directory: a folder of the four IDX files, or where TFDS prepared them; by default both are
        looked for in the usual places and else downloaded.
    """

    directory: str | None = None
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)

    names: ClassVar = tuple("0123456789")
    name: ClassVar = "mnist"  # in TFDS, and of the folder in the data folder
    url: ClassVar = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    sha256: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz":
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz":
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz":
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz":
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }
    installed: ClassVar[tuple[str, ...]] = ()  # folders of system packages
    package: ClassVar = ""  # how to install that package

    def prepare(self) -> None:
        self._where()

    def read(self, split: str) -> dict[str, np.ndarray]:
        folder = self._where()
        if not (folder / "dataset_info.json").exists():
            return read(folder, {"train": "train", "test": "t10k"}[split], self.classes)
        arrays = tfds.arrays(folder, split)
        order = tfds.original_order(split, len(arrays["label"]))
        return {name: array[order] for name, array in arrays.items()}

    def _where(self) -> Path:
        """The folder of the IDX files, fetched if need be, or of what TFDS prepared."""
        if self.directory is not None:
            places = [Path(os.path.expanduser(self.directory))]
        else:
            places = [data_folder() / self.name, *map(Path, self.installed)]
        for folder in places:
            if all(find(folder, part, kind) for part in ("train", "t10k") for kind in KINDS):
                return folder
        if found := tfds.prepared(self.name, self.directory):
            return found
        what = type(self).__name__
        if self.directory is not None:
            raise UserError(f"{what}: directory={self.directory} holds neither the files "
                              f"{', '.join(self.sha256)} nor TFDS's folder '{self.name}' as "
                              "array_record.")
        try:
            for file, sha256 in self.sha256.items():
                fetch(self.url + file, places[0] / file, sha256)
        except DataMissing as error:
            raise DataMissing(
                f"{what}: not on this machine ({error}) Bring it in one of these ways: put "
                f"{', '.join(self.sha256)} into {places[0]} or name their folder by "
                f"directory=FOLDER; {self.package}copy a TFDS folder '{self.name}' to "
                f"{tfds.root(None)}; or run once with a network.") from error
        return places[0]


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Mnist):
    """Fashion-MNIST (Xiao et al. 2017): 28 x 28 grey pictures of clothes, 60,000 and 10,000.

    Attributes:
      directory: a folder of the four IDX files, or where TFDS prepared them; by default both are
        looked for in the usual places and else downloaded.
    """

    mean: tuple[float, ...] = (0.2860,)
    std: tuple[float, ...] = (0.3530,)

    names: ClassVar = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                       "Sneaker", "Bag", "Ankle boot")
    name: ClassVar = "fashion_mnist"
    url: ClassVar = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    sha256: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz":
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz":
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz":
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz":
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }
    installed: ClassVar[tuple[str, ...]] = ("/usr/share/datasets/fashion-mnist",)
    package: ClassVar = (
        "apt install dataset-fashion-mnist (or apt-get download dataset-fashion-mnist && dpkg -x "
        "dataset-fashion-mnist_*.deb FOLDER, and then "
        "directory=FOLDER/usr/share/datasets/fashion-mnist); ")
