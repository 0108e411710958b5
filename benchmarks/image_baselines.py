"""What models that map images to images must beat: the best linear maps of their pixels.

    python benchmarks/image_baselines.py

On Fashion-MNIST, from its training images, errors of its test images:

- of the image under normal noise of deviation 0.5 (`denoise`): as it is, and by ridge regression of
  all pixels on all pixels;
- of the image of its edges (`edges_to_clothes`): the mean image, and ridge regression;
- of the first principal components (`vq_vae`).

What is found is clipped to the range of pixels.
"""

import jax.numpy as jnp
import numpy as np

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Edges

DEVIATION = 0.5
COMPONENTS = (10, 32)
RIDGE = 1.  # the weight of the squared coefficients


def linear(x: np.ndarray, y: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Ridge regression of y [N, D] on x [N, D], for what is `seen` [M, D]."""
    centre = x.mean(0)
    a = x - centre
    weights = np.linalg.solve(a.T @ a + RIDGE * np.eye(a.shape[1], dtype=a.dtype),
                              a.T @ (y - y.mean(0)))
    return (seen - centre) @ weights + y.mean(0)


def edges(images: np.ndarray) -> np.ndarray:
    """Those of images [N, 784] in [0, 1]: [N, 784] in [-1, 1]."""
    return np.concatenate([
        np.asarray(Edges()({"image": jnp.asarray(part.reshape(-1, 28, 28, 1))}, jnp.zeros(0))
                   ["source"]).reshape(-1, 784)
        for part in np.split(images, 10)])


def main() -> None:
    data = FashionMnist()
    data.prepare()
    train, test = (data.read(split)["image"].reshape(-1, 784) / np.float32(255)
                   for split in ("train", "test"))

    def squared(found: np.ndarray) -> float:
        return float(np.square(np.clip(found, 0, 1) - test).mean())

    random = np.random.default_rng(0)
    noisy, seen = (x + DEVIATION * random.standard_normal(x.shape, np.float32)
                   for x in (train, test))
    print(f"mean squared error in [0, 1], noise of {DEVIATION}: as it is {squared(seen):.4f}, "
          f"linear {squared(linear(noisy, train, seen)):.4f}")
    found = np.clip(linear(edges(train), train, edges(test)), 0, 1)
    print(f"mean absolute error in [-1, 1], of edges: "
          f"the mean image {2 * np.abs(train.mean(0) - test).mean():.4f}, "
          f"linear {2 * np.abs(found - test).mean():.4f}")
    centre = train.mean(0)
    _, vectors = np.linalg.eigh(np.cov(train, rowvar=False))  # in rising order
    for count in COMPONENTS:
        first = vectors[:, -count:].astype(np.float32)
        print(f"mean squared error in [0, 1], {count} principal components: "
              f"{squared((test - centre) @ first @ first.T + centre):.4f}")


if __name__ == "__main__":
    main()
