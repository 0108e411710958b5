"""Patches of photographs, without labels: for what learns from pixels alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jaxdl.config import Between, Size
from jaxdl.data.debian import package
from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.data.folder import SUFFIXES, percentile
from jaxdl.data.images import Images, decode
from jaxdl.data.progress import progress
from jaxdl.errors import DataMissing, UserError

WALLPAPERS = ("plasma-workspace-wallpapers_5.27.5-2_all", "p/plasma-workspace-wallpapers",
              "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b")
PHOTOGRAPHS = ("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow",
               "FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path", "summer_1am")
SCIKIT_IMAGE = ("https://files.pythonhosted.org/packages/a5/2a/"
                "e71c1a7d90e70da67b88ccc609bd6ae54798d5847369b15d3a8052232f9d/scikit_image-0.26.0-"
                "cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl")
SCIKIT_IMAGE_SHA256 = "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"
TESTED = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
          "motorcycle_left.png", "rocket.jpg")


@dataclass(frozen=True, kw_only=True)
class Patches(Images):
    """Photographs cut into squares beside each other: batches have "image" uint8 [B, size, size,
    channels] and "label", the number of the photograph. What is left at the right and at the bottom
    is not used.

    A kind of data defines `photographs`.

    Attributes:
      size: height and width of a patch.
      channels: 1 for grey (luma, ITU-R 601), 3 for colour.
    """

    size: Size = 96
    channels: Literal[1, 3] = 1
    mean: tuple[float, ...] = (0.,)
    std: tuple[float, ...] = (1.,)

    def photographs(self, split: str) -> list[tuple[Path, int]]:
        """The photographs of a split, and by how much each is shrunk before it is cut."""
        raise TypeError(f"{type(self).__name__} must define photographs().")

    def prepare(self) -> None:
        for split in self.splits:
            if not self.photographs(split):
                raise UserError(f"{type(self).__name__}: no photograph in the split {split!r}.")

    @property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(path.stem for split in self.splits for path, _ in self.photographs(split))

    def read(self, split: str) -> dict[str, np.ndarray]:
        images, labels = [], []
        number = {path: i for i, (path, _) in enumerate(
            file for split in self.splits for file in self.photographs(split))}
        files = self.photographs(split)
        with progress(f"cutting {split}", len(files)) as advance:
            for path, shrink in files:
                images.append(cut(pixels(path, self.channels, shrink), self.size))
                labels.append(np.full(len(images[-1]), number[path], np.int32))
                advance(1)
        image = np.concatenate(images)
        if not len(image):
            raise UserError(f"{type(self).__name__}: size={self.size}: no photograph of the split "
                            f"{split!r} is as large.")
        return {"image": image, "label": np.concatenate(labels)}


def pixels(path: Path, channels: int, shrink: int) -> np.ndarray:
    """A photograph, each square of `shrink` pixels as their mean: uint8 [H, W, channels]."""
    try:
        image = decode(path, size=None, channels=channels, upright=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}).") from error
    height, width = (side // shrink for side in image.shape[:2])
    image = image[:height * shrink, :width * shrink].astype(np.float32)
    mean = image.reshape(height, shrink, width, shrink, channels).mean((1, 3))
    return np.round(mean).astype(np.uint8)


def cut(image: np.ndarray, size: int) -> np.ndarray:
    """Squares beside each other of an image [H, W, C], row by row: [N, size, size, C]."""
    rows, columns = (side // size for side in image.shape[:2])
    image = image[:rows * size, :columns * size]
    squares = image.reshape(rows, size, columns, size, image.shape[-1]).swapaxes(1, 2)
    return squares.reshape(rows * columns, size, size, image.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Photographs(Patches):
    """Eleven photographs of landscapes and things to train on, halved to 1280 x 800, and seven
    others, of people, animals and things, to test on.

    The first are those among the pictures of Debian's package plasma-workspace-wallpapers
    4:5.27.5-2 (94 MB, CC BY-SA and LGPL), the others come with scikit-image 0.26 (14 MB, most of
    them in the public domain). Nothing is installed.
    """

    @property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (*PHOTOGRAPHS, *(Path(name).stem for name in TESTED))

    def photographs(self, split: str) -> list[tuple[Path, int]]:
        if split == "train":
            return [(wallpaper(name), 2) for name in PHOTOGRAPHS]
        return [(scikit_image(name), 1) for name in TESTED]


def wallpaper(name: str) -> Path:
    """A picture of 2560 x 1600 out of Debian's package plasma-workspace-wallpapers."""
    folder = package(*WALLPAPERS, only=r".*/2560x1600\.jpg")
    return folder / f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg"


def scikit_image(name: str) -> Path:
    """A picture that comes with scikit-image."""
    folder = data_folder() / "scikit_image"
    if not folder.is_dir():
        wheel = SCIKIT_IMAGE.rpartition("/")[2]
        try:
            archive = fetch(SCIKIT_IMAGE, data_folder() / wheel, SCIKIT_IMAGE_SHA256)
        except DataMissing as error:
            raise DataMissing(
                f"scikit-image's pictures: not on this machine ({error}) Bring them so: pip "
                "download --no-deps --python-version 3.11 --only-binary :all: "
                f"scikit-image==0.26.0, and put the file into {data_folder()}; name pictures of "
                "your own; or run once with a network.") from error
        extract(archive, folder, only=r"skimage/data/.*")
    return folder / "skimage" / "data" / name


@dataclass(frozen=True, kw_only=True)
class PhotographFolder(Patches):
    """Your own photographs, in a folder and the folders in it. `test_percent` of the files, chosen
    by a hash of their names, are the split "test": one that is added moves no other.

    Attributes:
      path: the folder.
      shrink: side of the squares of pixels that become one, before a photograph is cut.
      test_percent: how many of 100 files are the test split.
    """

    path: str
    shrink: Size = 1
    test_percent: Annotated[int, Between(1, 99)] = 20

    def photographs(self, split: str) -> list[tuple[Path, int]]:
        folder = Path(os.path.expanduser(self.path))
        if not folder.is_dir():
            raise DataMissing(f"PhotographFolder: path={self.path}: there is no such folder.")
        found = sorted(path for path in folder.rglob("*")
                       if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        return [(path, self.shrink) for path in found
                if (percentile(path.relative_to(folder)) < self.test_percent) == (split == "test")]
