"""Videos of real digits that move and bounce: Moving MNIST, composed on the spot."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxdl.config import NonNegative, Size
from jaxdl.data.images import Images
from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.source import Arrays, Source, StandIn
from jaxdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MovingDigits:
    """Digits at random places, each with a velocity of its own, which turns around where the digit
    reaches an edge; where two overlap the brighter pixel is seen: Srivastava et al. (2015),
    https://arxiv.org/abs/1502.04681, section 4.1. Batches have "video" uint8 [B, T, H, W, 1] and
    "label" int32 [B, digits]. The videos of a split are made of its own digits, always the same.

    Attributes:
      data: grey images with labels.
      videos: of the training split; of every other a fifth.
      frames: of a video, T.
      size: height and width of a frame.
      digits: in a video.
      shrink: side of the squares of pixels of a digit that become one.
      speed: pixels that a digit moves in a frame; each direction is as likely.
      stand_in: what to train on where this data is absent.
    """

    data: Images = field(default_factory=MnistSample)
    videos: Size = 4_000
    frames: Size = 10
    size: Size = 32
    digits: Size = 2
    shrink: Size = 2
    speed: NonNegative = 2.5
    stand_in: StandIn | None = None

    def prepare(self) -> None:
        self.data.prepare()

    def open(self, split: str) -> Source:
        content: Any = self.data.open(split)
        if content.arrays is None:
            raise UserError("MovingDigits: data: expected images that are kept in memory.")
        count = self.videos if split == "train" else max(self.videos // 5, 1)
        # Another seed for each split, which Python's own hash would change from run to run.
        seed = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4])
        return Arrays(arrays=self.composed(content.arrays, count, seed))

    def composed(self, arrays: Mapping[str, np.ndarray], count: int,
                 seed: int) -> dict[str, np.ndarray]:
        """`count` videos of the images [N, h, w, 1] and labels [N] of a split."""
        image = np.asarray(arrays["image"])[..., 0]
        height, width = (side // self.shrink for side in image.shape[1:])
        small = image[:, :height * self.shrink, :width * self.shrink].reshape(
            len(image), height, self.shrink, width, self.shrink).mean((2, 4))
        room = np.array([self.size - height, self.size - width])
        if (room < 1).any():
            raise UserError(f"MovingDigits: size={self.size}: a digit of {height} x {width} has no "
                            "room to move; a larger size, or shrink.")
        random = np.random.Generator(np.random.Philox(seed))
        chosen = random.integers(len(image), size=(count, self.digits))
        start = random.uniform(size=(count, self.digits, 1, 2)) * room
        angle = random.uniform(0, 2 * np.pi, size=(count, self.digits, 1))
        velocity = self.speed * np.stack([np.sin(angle), np.cos(angle)], -1)
        straight = start + velocity * np.arange(self.frames)[:, None]  # [N, digits, T, 2]
        # A path between two mirrors is one through their images, folded.
        places = np.round(room - np.abs(straight % (2 * room) - room)).astype(int)
        video = np.zeros((count, self.frames, self.size, self.size, 1), np.uint8)
        for i, digit, frame in np.ndindex(count, self.digits, self.frames):
            top, left = places[i, digit, frame]
            part = video[i, frame, top:top + height, left:left + width, 0]
            np.maximum(part, small[chosen[i, digit]].astype(np.uint8), out=part)
        return {"video": video, "label": np.asarray(arrays["label"])[chosen].astype(np.int32)}

    def fingerprint(self) -> str:
        text = (f"{self.data.fingerprint()} {self.videos} {self.frames} {self.size} {self.digits} "
                f"{self.shrink} {self.speed}")
        return hashlib.sha256(text.encode()).hexdigest()[:16]
