"""Classification that bears wrong labels: losses that believe a label less than cross-entropy does.

Each is a `Classification` with another `cross_entropy` in training, so whatever is made of a
classification is made of these: SAM(task=GeneralisedCrossEntropy(...)). Evaluation reports the
plain cross-entropy. Labels may be probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxdl.config import Fraction
from jaxdl.data.noisy_labels import Noise, Symmetric
from jaxdl.task import Batch
from jaxdl.tasks.classification import Classification

Array = jax.Array

DIFFERS = {"initial_loss": "the loss in training is not cross-entropy",
           "modes": "the loss in training is not that of evaluation"}


@dataclass(frozen=True, kw_only=True)
class GeneralisedCrossEntropy(Classification):
    """(1 - p^q) / q of the label's probability p, between cross-entropy (q near 0) and the mean
    absolute error (q = 1).

    Its gradient is that of cross-entropy times p^q: examples whose label the model finds unlikely,
    wrong ones most of all, count less. Zhang & Sabuncu (2018), https://arxiv.org/abs/1805.07836,
    equation 6, without truncation.

    Attributes:
      q: more is more robust and slower to learn; positive. 0.7 in the paper.
    """

    q: Fraction = 0.7

    not_applicable: ClassVar[Mapping[str, str]] = DIFFERS

    def cross_entropy(self, logits: Array, batch: Batch, train: bool) -> Array:
        if not train:
            return super().cross_entropy(logits, batch, train)
        powers = jnp.exp(self.q * jax.nn.log_softmax(logits))  # p^q
        return (self.target(batch, logits.shape[-1], train) * (1 - powers) / self.q).sum(-1)


@dataclass(frozen=True, kw_only=True)
class ForwardCorrection(Classification):
    """Cross-entropy of the labels that the noise would make of what the model predicts:
    -log (sum_i p_i T[i, label]).

    Its minimum over all functions is that of cross-entropy on the true labels. Patrini et al.
    (2017), https://arxiv.org/abs/1609.03683, section 4.2 and theorem 2.

    Attributes:
      noise: T, how labels go wrong.
    """

    noise: Noise = Symmetric()

    not_applicable: ClassVar[Mapping[str, str]] = DIFFERS

    def cross_entropy(self, logits: Array, batch: Batch, train: bool) -> Array:
        if not train:
            return super().cross_entropy(logits, batch, train)
        classes = logits.shape[-1]
        log_t = jnp.log(jnp.maximum(self.noise.matrix(classes), 1e-30))
        noisy = jax.nn.logsumexp(jax.nn.log_softmax(logits)[:, :, None] + log_t, axis=1)
        return -(self.target(batch, classes, train) * noisy).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Bootstrapping(Classification):
    """Cross-entropy of beta * label + (1 - beta) * what the model itself predicts.

    Reed et al. (2015), https://arxiv.org/abs/1412.6596, equations 6 ("soft") and 7 ("hard").

    Attributes:
      beta: how far labels are believed. 0.95 in the paper for soft predictions, 0.8 for hard ones.
      hard: the likeliest class instead of the probabilities.
    """

    beta: Fraction = 0.95
    hard: bool = False

    not_applicable: ClassVar[Mapping[str, str]] = DIFFERS

    def cross_entropy(self, logits: Array, batch: Batch, train: bool) -> Array:
        if not train:
            return super().cross_entropy(logits, batch, train)
        classes = logits.shape[-1]
        own = (jax.nn.one_hot(logits.argmax(-1), classes) if self.hard
               else jax.nn.softmax(logits))
        target = self.beta * self.target(batch, classes, train) + (1 - self.beta) * own
        return -(target * jax.nn.log_softmax(logits)).sum(-1)
