"""What a generative model of binary images must beat: a mixture of images of independent pixels.

    python benchmarks/densities.py

On Fashion-MNIST, each pixel drawn as 1 with its intensity as the probability (`Binarise`, with
other random numbers): log-likelihoods in nats for each test image of

- independent pixels, with the mean training image;
- a mixture of 500 such images, by 25 rounds of expectation and maximisation from as many training
  images (Bishop 2006, section 9.3.3), with the mean image as half a prior example of each;
- and the grey images themselves, which no model that is not given them can reach.
"""

import numpy as np

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


def main() -> None:
    data = FashionMnist()
    data.prepare()
    random = np.random.default_rng(0)
    grey = {split: data.read(split)["image"].reshape(-1, 784) / np.float32(255)
            for split in ("train", "test")}
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
