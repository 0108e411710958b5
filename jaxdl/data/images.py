"""What data sets of labelled images share: fields, splits, decoding, and the fingerprint."""

import functools
import hashlib
import io
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxdl.config import Count
from jaxdl.data.progress import progress
from jaxdl.data.source import Arrays, Records, Source, StandIn, Transform, permutation
from jaxdl.data.transforms import Normalise
from jaxdl.errors import UserError, nearest

# Of pictures: Pillow goes by content, and starts programs for some other formats.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
IN_MEMORY = 1 << 30  # bytes up to which a decoded split is kept in memory, on the device
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Example = Mapping[str, np.ndarray]  # "image" uint8 [H, W, C], "label" int32 []


@dataclass(frozen=True)
class Encoded(Sequence[Example]):
    """Examples that are decoded each time they are asked for; from any thread.

    Attributes:
      decode: the examples of some ids; many at once are read faster than one by one.
      size: how many there are.
      identity: computes what makes these examples these, the contents of their files included,
        for the fingerprint.
    """

    decode: Callable[[Sequence[int]], list[Example]]
    size: int
    identity: Callable[[], str]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: Any) -> Any:
        return self.decode([i])[0]

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        return self.decode(ids)


Content = Mapping[str, np.ndarray] | Encoded  # a split: arrays [N, ...] by name, or encoded


class _Contents(dict[str, Content]):
    """The splits that were read, by name."""


# Data sets that differ only in how they transform share what was read, for as long as one of them
# lives: a sweep builds many such from one, inside a trace even, and must not decode again.
_contents: weakref.WeakValueDictionary[tuple[Any, ...], _Contents] = weakref.WeakValueDictionary()


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of labelled images: batches have "image" uint8 [B, H, W, C] and "label" int32 [B].

    A kind of data set defines `prepare` and `read`.

    Attributes:
      augment: transforms of the split "train", in order, before normalisation.
      evaluation: transforms of every other split, such as a centre crop, before normalisation.
      mean: of each channel, of images in [0, 1]; every split is normalised.
      std: standard deviation of each channel, of images in [0, 1].
      validation: how many training examples to hold out, always the same, as split "validation".
      stand_in: what to train on where this data is absent.
    """

    augment: tuple[Transform, ...] = ()
    evaluation: tuple[Transform, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    validation: Count = 0
    stand_in: StandIn | None = None

    splits: ClassVar[Any] = ("train", "test")
    names: ClassVar[Any] = None  # of the classes, where known

    def prepare(self) -> None:
        """Makes sure that the data is on this machine; `DataMissing` if it cannot be fetched."""
        raise TypeError(f"{type(self).__name__} must define prepare().")

    def read(self, split: str) -> Content:
        """The examples of one of `splits`, in an order that never changes."""
        raise TypeError(f"{type(self).__name__} must define read().")

    def has(self, split: str) -> bool:
        """Whether `read` takes this split."""
        return split in self.splits

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    def transforms(self, split: str) -> tuple[Transform, ...]:
        """What a split's batches go through; costs nothing and reads nothing."""
        chosen = self.augment if split == "train" else self.evaluation
        return (*chosen, Normalise(mean=self.mean, std=self.std))

    def open(self, split: str) -> Source:
        content = self._content(split)
        if isinstance(content, Encoded):
            return Records(examples=content, transforms=self.transforms(split))
        return Arrays(arrays=content, transforms=self.transforms(split))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"validation={self.validation}".encode())
        for split in self.splits:
            content = self._read(split)
            if isinstance(content, Encoded):
                digest.update(f"{split} {content.size} {content.identity()}".encode())
                continue
            for name, array in sorted(content.items()):
                digest.update(f"{split} {name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def _content(self, split: str) -> Content:
        """A split as `validation` leaves it."""
        if not self.validation or split not in ("train", "validation"):
            if not self.has(split):
                raise UserError(f"{type(self).__name__}: no split {split!r}, only "
                                f"{', '.join(map(repr, self.splits))}."
                                f"{nearest(split, self.splits)}")
            return self._read(split)
        whole = self._read("train")
        size = len(whole) if isinstance(whole, Encoded) else len(whole["label"])
        if self.validation >= size:
            raise UserError(f"{type(self).__name__}: validation={self.validation} leaves nothing "
                            f"of the {size} training examples.")
        order = permutation(0, 0, size)
        kept = np.sort(order[:-self.validation] if split == "train" else order[-self.validation:])
        if isinstance(whole, Encoded):
            return Encoded(lambda ids: whole.decode([int(kept[i]) for i in ids]), len(kept),
                           whole.identity)
        return {name: array[kept] for name, array in whole.items()}

    def _read(self, split: str) -> Content:
        if split not in self._shared:
            self._shared[split] = self.read(split)
        return self._shared[split]

    @functools.cached_property
    def _shared(self) -> _Contents:
        changes_nothing = {f.name for f in fields(Images)}
        key = (type(self), *(getattr(self, f.name) for f in fields(self)
                             if f.name not in changes_nothing))
        return _contents.setdefault(key, _Contents())


def check_labels(path: Path, label: np.ndarray, classes: int) -> None:
    """Raises a UserError for the first record of a file whose label is that of no class."""
    wrong = np.flatnonzero((label < 0) | (label >= classes))
    if len(wrong):
        raise UserError(f"{path}: record {wrong[0]} has the label {label[wrong[0]]}, expected 0 to "
                        f"{classes - 1}.")


def in_memory(examples: Encoded, what: str) -> Content:
    """The examples decoded into arrays, by all processors, if they take IN_MEMORY at most."""
    first = examples[0]
    if len(examples) * sum(array.nbytes for array in first.values()) > IN_MEMORY:
        return examples
    arrays = {name: np.empty((len(examples), *array.shape), array.dtype)
              for name, array in first.items()}

    def fill(ids: range) -> int:
        for i, example in zip(ids, examples.decode(ids), strict=True):
            for name, array in example.items():
                arrays[name][i] = array
        return len(ids)

    whole = range(len(examples))
    parts = [whole[i:i + 256] for i in range(0, len(whole), 256)]
    with (ThreadPoolExecutor(os.cpu_count()) as pool,
          progress(f"decoding {what}", len(examples)) as advance):
        for done in pool.map(fill, parts):  # After an error, what was not begun is not begun.
            advance(done)
    return arrays


def decode(encoded: bytes | Path, *, size: int | None, channels: int,
           upright: bool = False) -> np.ndarray:
    """The pixels of an image file: uint8 [H, W, channels], or [size, size, channels].

    The shorter side becomes `size` (antialiased), then the centre is cropped. Palettes are looked
    up, 16 bits a channel become 8, and what is transparent becomes white.

    Args:
      encoded: the file, or what is in it.
      size: height and width of the result; None keeps the image's own.
      channels: 1 for grey, 3 for colour.
      upright: whether to turn the image as its EXIF orientation says.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded,
                            formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("it begins like no known format") from error
    with opened as image:
        if size is not None:
            # A JPEG is decoded at a half, a quarter or an eighth, if that is still large enough.
            image.draft("L" if channels == 1 else "RGB", (size, size))
        image.load()
        turned = ImageOps.exif_transpose(image) if upright else image
    flat = _eight_bits(turned, "L" if channels == 1 else "RGB")
    if size is not None:
        scale = size / min(flat.size)
        width, height = (max(size, round(side * scale)) for side in flat.size)
        if (width, height) != flat.size:
            flat = flat.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        if (width, height) != (size, size):
            flat = flat.crop((left, top, left + size, top + size))
    pixels = np.asarray(flat)
    return pixels[..., None] if channels == 1 else pixels


def _eight_bits(image: Any, mode: str) -> Any:
    """A Pillow image of any mode in mode "L" or "RGB"."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, in the lower half of 32 for some formats
        grey = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        cut_out = image.convert("RGBA")
        white = Image.new("RGBA", cut_out.size, "white")
        image = Image.alpha_composite(white, cut_out)
    return image if image.mode == mode else image.convert(mode)
