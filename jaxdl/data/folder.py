"""A folder of the user's own images, one sub-folder for each class."""

import errno
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jaxdl.config import Between, Size
from jaxdl.data.contents import contents
from jaxdl.data.images import Content, Encoded, Example, Images, decode, in_memory
from jaxdl.data.progress import progress
from jaxdl.errors import DataMissing, UserError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
SPLITS = ("train", "validation", "valid", "val", "test")

File = tuple[Path, int]  # an image and its class


class Broken(UserError):
    """An image that cannot be decoded, in contrast to a file that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Images):
    """Your own images: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png.

    Classes are numbered in the order of their names. Without folders for the splits, `test_percent`
    of the images, chosen by a hash of their names, are the split "test": an image that is added
    moves no other.

    Attributes:
      path: the folder.
      only: the class folders to take; () takes all.
      size: height and width: the shorter side is resized to it and the centre cropped.
      channels: 1 for grey, 3 for colour.
      test_percent: how many of 100 images are the test split, if there are no folders for splits.
      skip_broken: whether to leave out images that cannot be read, after checking each, rather
        than to stop at the first.
    """

    path: str
    only: tuple[str, ...] = ()
    size: Size
    channels: Literal[1, 3] = 3
    test_percent: Annotated[int, Between(1, 99)] = 20
    skip_broken: bool = False

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        if not self._has_splits():
            return ("train", "test")
        return tuple(split for split in SPLITS if (self._folder() / split).is_dir())

    @property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        folder = self._folder()
        return self._classes(folder / "train" if self._has_splits() else folder)

    def prepare(self) -> None:
        for split in self.splits:
            self._files(split)

    def read(self, split: str) -> Content:
        files = self._files(split)
        example = functools.partial(_example, size=self.size, channels=self.channels)
        if self.skip_broken:
            files = _readable(files, example)
        examples = Encoded(lambda ids: [example(files[i]) for i in ids], len(files),
                           functools.partial(self._identity, files))
        return in_memory(examples, f"{self.path} {split}")

    def _identity(self, files: Sequence[File]) -> str:
        digest = hashlib.sha256(f"{self.size} {self.channels}".encode())
        for path, label in files:
            digest.update(f"{path.relative_to(self._folder()).as_posix()}\0{label}\n".encode())
        return f"{digest.hexdigest()} {contents([path for path, _ in files])}"

    def _folder(self) -> Path:
        folder = Path(os.path.expanduser(self.path))
        if not folder.is_dir():
            raise DataMissing(f"ImageFolder: path={self.path}: there is no such folder.")
        return folder

    def _has_splits(self) -> bool:
        return (self._folder() / "train").is_dir()

    def _classes(self, folder: Path) -> tuple[str, ...]:
        """The classes that are taken, of those in a folder."""
        names = _classes(folder)
        for name in self.only:
            if name not in names:
                raise UserError(f"ImageFolder: only: {folder} has no folder {name!r}."
                                f"{nearest(name, names)}")
        return tuple(name for name in names if not self.only or name in self.only)

    def _files(self, split: str) -> list[File]:
        """The images of a split and their classes, in the order of their names."""
        root, classes = self._folder(), self.names
        folder = root / split if self._has_splits() else root
        if self._classes(folder) != classes:
            differ = sorted(set(self._classes(folder)) ^ set(classes))
            raise UserError(f"{folder}: its classes differ from those of {root / 'train'}: "
                            f"{', '.join(differ)} in one of them only.")
        files: list[File] = []
        for label, name in enumerate(classes):
            images = sorted(path for path in (folder / name).rglob("*")
                            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
            if not images:
                raise UserError(f"{folder / name}: no images in the folder of this class; expected "
                                f"files that end in {', '.join(SUFFIXES)}.")
            if not self._has_splits():
                images = [path for path in images
                          if (percentile(path.relative_to(root)) < self.test_percent)
                          == (split == "test")]
            files += [(path, label) for path in images]
        if not files:
            raise UserError(f"{root}: no images are left for split {split!r}; change "
                            f"test_percent={self.test_percent}.")
        return files


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir()
                         if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise UserError(f"{folder}: no class folders; expected {folder}/CLASS/IMAGE.png.")
    return names


def percentile(path: Path) -> int:
    """0 ... 99 by a hash of the name."""
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8]) % 100


def _example(file: File, size: int, channels: int) -> Example:
    path, label = file
    try:
        image = decode(path, size=size, channels=channels, upright=True)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises what it likes for a broken file.
        # To be forbidden, or to have too many files open, does not make an image broken; a
        # damaged TIFF can ask for a place before the beginning (EINVAL).
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
        raise Broken(f"{path}: not a readable image ({' '.join(str(error).split())}); remove it, "
                     "or set skip_broken=True.") from error
    return {"image": image, "label": np.asarray(label, np.int32)}


def _readable(files: list[File], example: Callable[[File], Example]) -> list[File]:
    """The files that can be decoded; says on stderr how many cannot."""
    broken: list[str] = []

    def check(file: File) -> bool:
        try:
            example(file)
        except Broken as error:
            broken.append(str(error).split("; remove it")[0])
            return False
        return True

    with (ThreadPoolExecutor(os.cpu_count()) as pool,
          progress("checking images", len(files)) as advance):
        kept = []
        for file, good in zip(files, pool.map(check, files), strict=True):
            kept += [file] if good else []
            advance(1)
    if broken:
        print(f"ImageFolder: skipped {len(broken)} of {len(files)} images, such as {min(broken)}.",
              file=sys.stderr)
    if not kept:
        raise UserError(f"{files[0][0].parent}: none of the {len(files)} images can be read.")
    return kept
