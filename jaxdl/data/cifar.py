"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the original binary archives or from TFDS.

A record is a label (CIFAR-100: the superclass, then the class) and 3 x 32 x 32 bytes, red first.
The pickled archives are never read: to unpickle is to run code.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxdl.data import tfds
from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.data.images import Images, check_labels
from jaxdl.errors import DataMissing, UserError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class _Cifar(Images):
    directory: str | None = None

    name: ClassVar[str]  # in TFDS
    url: ClassVar[str]
    sha256: ClassVar[str]
    folder: ClassVar[str]  # in the archive
    labels: ClassVar[int]  # bytes before the pixels; the last one is the class
    files: ClassVar[Mapping[str, Mapping[str, int]]]  # split -> file -> records

    def prepare(self) -> None:
        self._where()

    def read(self, split: str) -> dict[str, np.ndarray]:
        folder = self._where()
        if (folder / "dataset_info.json").exists():
            arrays = tfds.arrays(folder, split, also=("id",))
            order = np.argsort(arrays.pop("id"), kind="stable")  # b"train_00042": the file's order
            return {name: array[order] for name, array in arrays.items()}
        records = np.concatenate([self._records(folder / file, count)
                                  for file, count in self.files[split].items()])
        image = records[:, self.labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return {"image": np.ascontiguousarray(image),
                "label": records[:, self.labels - 1].astype(np.int32)}

    def _records(self, path: Path, count: int) -> np.ndarray:
        """A file's records, uint8 [count, bytes]."""
        if not path.is_file():
            raise UserError(f"{path}: missing; delete {path.parent} and bring it again.")
        size, expected = path.stat().st_size, count * (self.labels + PIXELS)
        if size != expected:
            raise UserError(f"{path}: {size:,} bytes, expected {expected:,} ({count:,} records of "
                            f"{self.labels + PIXELS}); delete {path.parent} and bring it again.")
        records = np.fromfile(path, np.uint8).reshape(count, -1)
        check_labels(path, records[:, self.labels - 1], self.classes)
        return records

    def _where(self) -> Path:
        """The folder of the binary files, fetched if need be, or of what TFDS prepared.

        The binary files come first: they are read a hundred times faster than TFDS's PNG images.
        """
        name = self.url.split("/")[-1]
        given = self.directory is not None
        place = Path(os.path.expanduser(self.directory)) if self.directory else data_folder()
        unpacked = data_folder() / self.folder
        for folder in (place, place / self.folder):
            if all((folder / file).is_file() for files in self.files.values() for file in files):
                return folder
        if (place / name).is_file():
            return self._unpack(place / name, unpacked)
        if found := tfds.prepared(self.name, self.directory):
            return found
        what = type(self).__name__
        if given:
            raise UserError(f"{what}: directory={self.directory} holds neither {name}, nor its "
                              f"folder {self.folder}, nor TFDS's folder '{self.name}' as "
                              "array_record.")
        try:
            archive = fetch(self.url, place / name, self.sha256)
        except DataMissing as error:
            raise DataMissing(
                f"{what}: not on this machine ({error}) Bring it in one of three ways: put {name} "
                f"into {place} or name its folder by directory=FOLDER; copy a TFDS folder "
                f"'{self.name}' to {tfds.root(None)}; or run once with a network.") from error
        return extract(archive, unpacked, strip=1)

    def _unpack(self, archive: Path, folder: Path) -> Path:
        """Unpacks an archive that the user brought, if it is the original one."""
        if not folder.exists():
            with archive.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != self.sha256:
                raise UserError(f"{archive}: not the original archive, or damaged: SHA-256 is "
                                f"{digest}, expected {self.sha256}.")
        return extract(archive, folder, strip=1)


@dataclass(frozen=True, kw_only=True)
class Cifar10(_Cifar):
    """CIFAR-10: 32 x 32 colour images in 10 classes, 50,000 to train and 10,000 to test.

    Attributes:
      directory: a folder with the binary archive, its unpacked files, or TFDS's data; by default
        they are looked for in the usual places and else downloaded.
    """

    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)

    names: ClassVar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse",
                       "ship", "truck")
    name: ClassVar = "cifar10"
    url: ClassVar = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    sha256: ClassVar = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    folder: ClassVar = "cifar-10-batches-bin"
    labels: ClassVar = 1
    files: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "train": {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        "test": {"test_batch.bin": 10_000}}


@dataclass(frozen=True, kw_only=True)
class Cifar100(_Cifar):
    """CIFAR-100: 32 x 32 colour images in 100 classes, 50,000 to train and 10,000 to test.

    Attributes:
      directory: a folder with the binary archive, its unpacked files, or TFDS's data; by default
        they are looked for in the usual places and else downloaded.
    """

    mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409)
    std: tuple[float, ...] = (0.2673, 0.2564, 0.2762)

    names: ClassVar = tuple("""
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split())  # noqa: SIM905
    name: ClassVar = "cifar100"
    url: ClassVar = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    sha256: ClassVar = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
    folder: ClassVar = "cifar-100-binary"
    labels: ClassVar = 2
    files: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "train": {"train.bin": 50_000}, "test": {"test.bin": 10_000}}
