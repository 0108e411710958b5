"""What a model of the density of images must beat: mixtures of independent pixels, file formats.

    python benchmarks/densities.py

On Fashion-MNIST, each pixel drawn as 1 with its intensity as the probability (`Binarise`, with
other random numbers): log-likelihoods in nats for each test image of

- independent pixels, with the mean training image;
- a mixture of 500 such images, by 25 rounds of expectation and maximisation from as many training
  images (Bishop 2006, section 9.3.3), with the mean image as half a prior example of each;
- and the grey images themselves, which no model that is not given them can reach.

Of the grey levels as they are, in bits for each pixel of the test images:

- independent pixels, each with the frequencies of its levels in training;
- the files of the first 1,000 images as PNG and as WebP without loss.
"""

import io

import numpy as np
from PIL import Image

from jaxdl.data.idx import FashionMnist
from jaxdl.data.progress import progress

COMPONENTS, ROUNDS = 500, 25


def log_likelihood(x: np.ndarray, mean: np.ndarray, share: np.ndarray
                   ) -> tuple[np.ndarray, np.ndarray]:
    """(log p(x) [N], log p(x, component) [N, K]) of binary x [N, D] under means [K, D]."""
    joint = x @ np.log(mean).T + (1 - x) @ np.log1p(-mean).T + np.log(share)
    top = joint.max(1, keepdims=True)
    return top[:, 0] + np.log(np.exp(joint - top).sum(1)), joint


def mixture(x: np.ndarray, count: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """(means [K, D], shares [K]) of a mixture of `count` images of independent pixels."""
    random = np.random.default_rng(0)
    prior = x.mean(0)
    mean = (0.75 * x[random.choice(len(x), count, replace=False)] + 0.125).astype(np.float32)
    share = np.full(count, 1 / count, np.float32)
    with progress("rounds", rounds) as advance:
        for _ in range(rounds):
            total, joint = log_likelihood(x, mean, share)
            weight = np.exp(joint - total[:, None])
            number = weight.sum(0)
            mean = (weight.T @ x + 0.5 * prior) / (number[:, None] + 0.5)
            mean = np.clip(mean, 1e-3, 1 - 1e-3).astype(np.float32)
            share = ((number + 1e-3) / (number + 1e-3).sum()).astype(np.float32)
            advance(1)
    return mean, share


def frequencies(train: np.ndarray, test: np.ndarray) -> float:
    """Bits for each pixel of images [M, D], by how often it has its level in [N, D]; each level was
    seen 1/256 of a time besides."""
    seen = np.stack([np.bincount(pixel, minlength=256) for pixel in train.T]) + 1 / 256
    share = seen / seen.sum(1, keepdims=True)
    return float(-np.log2(share[np.arange(len(share)), test]).mean())


def stored(images: np.ndarray, kind: str, **options: object) -> float:
    """Bits for each pixel of images [N, H, W] in files of a kind."""
    size = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        size += len(file.getvalue())
    return 8 * size / images.size


def main() -> None:
    data = FashionMnist()
    data.prepare()
    random = np.random.default_rng(0)
    levels = {split: data.read(split)["image"].reshape(-1, 784) for split in ("train", "test")}
    some = levels["test"][:1_000].reshape(-1, 28, 28)
    print(f"bits of a pixel: independent {frequencies(levels['train'], levels['test']):.2f}, "
          f"PNG {stored(some, 'PNG', optimize=True):.2f}, "
          f"WebP {stored(some, 'WEBP', lossless=True, quality=100, method=6):.2f}")
    grey = {split: x / np.float32(255) for split, x in levels.items()}
    train, test = ((random.random(x.shape, np.float32) < x).astype(np.float32)
                   for x in grey.values())
    p = np.clip(grey["test"], 1e-12, 1 - 1e-7)
    print(f"the grey images {(p * np.log(p) + (1 - p) * np.log1p(-p)).sum(1).mean():.1f}")
    mean = np.clip(train.mean(0, keepdims=True), 1e-4, 1 - 1e-4)
    print(f"independent pixels {log_likelihood(test, mean, np.ones(1))[0].mean():.1f}")
    found, _ = log_likelihood(test, *mixture(train, COMPONENTS, ROUNDS))
    print(f"mixture of {COMPONENTS} {found.mean():.1f}")


if __name__ == "__main__":
    main()
