"""Two digits on one picture (Sabour et al. 2017, section 6; Sener & Koltun 2018, section 5.1)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxdl.config import Size
from jaxdl.data.images import Images
from jaxdl.data.source import permutation
from jaxdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TwoDigits(Images):
    """Each picture of another data set with a second one of the same split over it.

    The first lies `shift` pixels up and left, the second as many down and right, on a ground that
    is as much larger; where they overlap the brighter pixel counts. "label" is that of the first,
    "second" that of the other. Which two belong together is a fixed random choice.

    Attributes:
      mean: of the pixels in [0, 1]; the default is that of two digits of MNIST.
      std: of the pixels.
      data: of grey pictures in memory, such as MnistSample.
      shift: in pixels, half of the distance between the two.
      examples: of the training split that are used; None for all.
    """

    mean: tuple[float, ...] = (0.153,)
    std: tuple[float, ...] = (0.329,)
    data: Images
    shift: Size = 4
    examples: Size | None = None

    names: ClassVar = tuple("0123456789")

    def prepare(self) -> None:
        self.data.prepare()

    def read(self, split: str) -> dict[str, np.ndarray]:
        for name in ("validation", "augment"):
            if getattr(self.data, name):
                raise UserError(f"TwoDigits: data.{name} would be ignored; set {name} beside it.")
        found = self.data.read(split)
        if not isinstance(found, dict) or found["image"].shape[-1] != 1:
            raise UserError("TwoDigits: data: grey pictures in memory are needed.")
        image, label = found["image"], found["label"]
        if split == "train" and self.examples is not None:
            chosen = np.sort(permutation(1, 0, len(label))[:self.examples])
            image, label = image[chosen], label[chosen]
        other = permutation(0, 0, len(label))
        first = np.pad(image, ((0, 0), *[(0, 2 * self.shift)] * 2, (0, 0)))
        second = np.pad(image[other], ((0, 0), *[(2 * self.shift, 0)] * 2, (0, 0)))
        return {"image": np.maximum(first, second), "label": label, "second": label[other]}
