"""How much privacy noisy training spends: Renyi divergences of the sampled Gaussian mechanism.

Own lines, not a library: the one that there is (dp-accounting, with which tests compare) pins old
versions of others, and what is needed of it is one sum. Imports no jax.
"""

import math

import numpy as np
from scipy.special import gammaln, logsumexp, xlog1py

from jaxdl.errors import UserError

ORDERS = np.array([*range(2, 65), 80, 96, 128, 192, 256, 512, 1024])  # of the divergences


def renyi_divergence(rate: float, noise: float) -> np.ndarray:
    """Of one step, at each of ORDERS: [orders].

    With rate q, noise sigma and order a, log(A) / (a - 1) where

        A = sum_k binomial(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 sigma^2))

    Mironov et al. (2019), https://arxiv.org/abs/1908.10530, section 3.3: of the Gaussian mechanism
    on a sample that each example enters with probability q, independently ("Poisson").
    """
    a, k = ORDERS[:, None], np.arange(ORDERS[-1] + 1)
    with np.errstate(over="ignore", divide="ignore"):
        terms = (gammaln(a + 1) - gammaln(k + 1) - gammaln(np.maximum(a - k, 0) + 1)
                 + xlog1py(np.maximum(a - k, 0), -rate) + k * math.log(rate)
                 + np.divide(k * (k - 1), 2 * noise ** 2, out=np.full(len(k), np.inf),
                             where=noise > 0))
    return logsumexp(np.where(k <= a, terms, -np.inf), axis=1) / (ORDERS - 1)


def privacy_spent(*, rate: float, noise: float, steps: int, delta: float) -> float:
    """epsilon after so many steps, for a delta in (0, 1).

    Divergences add up over steps; the least over orders a of

        steps * divergence(a) + log(1 - 1 / a) - log(delta * a) / (a - 1)

    holds (Canonne et al. 2020, https://arxiv.org/abs/2004.00010, proposition 12). It is somewhat
    smaller than by the conversion of older papers, divergence + log(1 / delta) / (a - 1).
    """
    if steps == 0:
        return 0.
    found = (steps * renyi_divergence(rate, noise) + np.log1p(-1 / ORDERS)
             - np.log(delta * ORDERS) / (ORDERS - 1))
    return max(0., float(found.min()))


def noise_for(*, epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The least noise multiplier that spends at most `epsilon`, to a thousandth of it."""
    low, high = 1e-2, 1e4
    if not privacy_spent(rate=rate, noise=high, steps=steps, delta=delta) <= epsilon:
        raise UserError(f"noise_for(epsilon={epsilon}): no noise up to {high:g} does it.")
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        spent = privacy_spent(rate=rate, noise=middle, steps=steps, delta=delta)
        low, high = (low, middle) if spent <= epsilon else (middle, high)
    return high
