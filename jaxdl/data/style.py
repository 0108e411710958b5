"""A picture to paint after, beside pictures to paint."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.images import Images, decode
from jaxdl.data.photographs import scikit_image, wallpaper
from jaxdl.data.source import Batch, Source, StandIn, Transform
from jaxdl.errors import DataMissing, UserError

Array = jax.Array


def picture(name: str, size: int) -> np.ndarray:
    """A picture in colour, its shorter side resized and the centre cropped: uint8 [size, size, 3].

    Args:
      name: a file; or one that packages ship: "scikit-image:astronaut.png", "wallpaper:Autumn".
      size: in pixels.
    """
    kind, _, rest = name.partition(":")
    known = {"scikit-image": scikit_image, "wallpaper": wallpaper}
    path = known[kind](rest) if kind in known else Path(os.path.expanduser(name))
    if not path.is_file():
        raise DataMissing(f"{name}: there is no such picture; name a file, "
                          "'scikit-image:NAME' or 'wallpaper:NAME'.")
    try:
        return decode(path, size=size, channels=3, upright=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}).") from error


@dataclass(frozen=True, kw_only=True)
class OnePicture(Images):
    """One picture, as the only example of each split.

    Attributes:
      picture: see `picture`.
      size: height and width.
    """

    picture: str
    size: Size = 128

    names = ("picture",)  # pyright: ignore[reportAssignmentType]

    def prepare(self) -> None:
        picture(self.picture, self.size)

    def read(self, split: str) -> dict[str, np.ndarray]:
        return {"image": picture(self.picture, self.size)[None], "label": np.zeros(1, np.int32)}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A source whose batches have one picture more, the same in each: "style" [B, H, W, C].

    Attributes:
      inner: the source.
      style: [H, W, C], as the source's images are stored.
      transforms: those of `inner`.
    """

    inner: Any
    style: np.ndarray
    transforms: tuple[Transform, ...] = ()

    @property
    def size(self) -> int:
        return int(self.inner.size)

    @property
    def arrays(self) -> Mapping[str, Any] | None:
        return self.inner.arrays

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        return self.inner.index(seed, position, batch_size)

    def read(self, index: Any) -> Batch:
        return self.inner.read(index)

    def transform(self, batch: Batch, key: Array) -> Batch:
        """The style is normalised as the images are, and not augmented."""
        found = replace(self.inner, transforms=self.transforms).transform(batch, key)
        many = jnp.broadcast_to(jnp.asarray(self.style), (len(batch["index"]), *self.style.shape))
        plain = {**batch, "image": many}
        for transform in self.transforms[-1:]:
            plain = transform(plain, key)
        return {**found, "style": plain["image"]}


@dataclass(frozen=True, kw_only=True)
class WithStyle:
    """Pictures to paint, and one to paint after.

    Attributes:
      data: pictures in colour, of which it says how they are normalised.
      style: see `picture`.
      size: its height and width.
      stand_in: what to train on where this data is absent.
    """

    data: Images
    style: str
    size: Size = 128
    stand_in: StandIn | None = None

    def prepare(self) -> None:
        self.data.prepare()
        picture(self.style, self.size)

    def open(self, split: str) -> Source:
        inner: Any = self.data.open(split)
        return Beside(inner=inner, style=picture(self.style, self.size),
                      transforms=inner.transforms)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.data.fingerprint()} {self.size}".encode())
        digest.update(picture(self.style, self.size).tobytes())
        return digest.hexdigest()[:16]
