"""The 1,797 handwritten digits that scikit-learn ships: real images on every machine, at once."""

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from jaxdl.config import Between
from jaxdl.data.images import Images
from jaxdl.data.source import permutation
from jaxdl.errors import DataMissing, UserError


@dataclass(frozen=True, kw_only=True)
class Digits(Images):
    """8 x 8 images of handwritten digits (Alpaydin and Kaynak 1998): 1,438 to train, 359 to test.

    Each pixel is repeated (nearest neighbour) as often as `size` allows, with a black margin if 8
    does not divide it, and 0 ... 16 is scaled to 0 ... 255; so the images can stand in for CIFAR
    (32, 3 channels) or MNIST (28, 1 channel). The split is random, but always the same.

    Attributes:
      size: height and width of the images.
      channels: 1 for grey, 3 for three equal channels.
    """

    size: Annotated[int, Between(8)] = 32
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.305,)
    std: tuple[float, ...] = (0.376,)

    names: ClassVar = tuple("0123456789")

    def prepare(self) -> None:
        self._file()

    def read(self, split: str) -> dict[str, np.ndarray]:
        path = self._file()
        try:
            with gzip.open(path, "rt") as file:
                table = np.loadtxt(file, delimiter=",")
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}); reinstall scikit-learn.") from error
        test = len(table) // 5
        order = permutation(0, 0, len(table))
        table = table[np.sort(order[:test] if split == "test" else order[test:])]
        image = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        image = image.repeat(self.size // 8, axis=1).repeat(self.size // 8, axis=2)
        margin = self.size - image.shape[1]
        around = (margin // 2, margin - margin // 2)
        image = np.pad(image, ((0, 0), around, around))[..., None].repeat(self.channels, axis=3)
        return {"image": image, "label": table[:, 64].astype(np.int32)}

    @staticmethod
    def _file() -> Path:
        """The file inside of scikit-learn, which takes seconds to import and is not imported."""
        found = importlib.util.find_spec("sklearn")
        if found is not None and found.origin is not None:
            path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
            if path.is_file():
                return path
        raise DataMissing("Digits: scikit-learn, which holds the images, is not installed; "
                          "pip install scikit-learn.")
