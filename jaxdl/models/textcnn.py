"""Convolutions over a text: how it is classified by phrases, wherever they stand.

And what every classifier of texts needs: pooling over the tokens that there are.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.layers import Activation, Dropout, activate
from jaxdl.models.transformer import embedded

Array = jax.Array
Pool = Literal["max", "mean"]


def pooled(x: Array, valid: Array, pool: Pool) -> Array:
    """The maximum or the mean of x [B, T, D] over the places where valid [B, T] is set: [B, D];
    zero where there are none."""
    some = valid.any(1)[:, None]
    if pool == "mean":
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        total = jnp.where(valid[..., None], exact, 0).sum(1)
        return (total / jnp.maximum(valid.sum(1)[:, None], 1)).astype(x.dtype)
    lowest = jnp.finfo(x.dtype).min
    return jnp.where(some, jnp.where(valid[..., None], x, lowest).max(1), 0)


class TextCNN(nn.Module):
    """Embedding, convolutions of several widths, the maximum of each over the text, and a dense
    head.

    Kim (2014), https://arxiv.org/abs/1408.5882, section 2: c_t = f(w . [x_t ... x_{t+h-1}] + b) for
    each filter w of width h, and max over t of c_t; "CNN-rand", with embeddings that start random.
    A window counts where its middle is a token. What is not a token is zero in every window, as at
    the two ends of the text, so that to fill a row up changes nothing.

    Attributes:
      vocabulary: number of tokens.
      classes: number of logits.
      embedding: width of a token's embedding, E.
      widths: tokens that a filter sees.
      filters: of each width, F.
      activation: f; Kim has a rectifier.
      pool: what of a filter's outputs over the text counts; Kim has the maximum.
      dropout: probability of zeroing, in training, a feature before the head; None for none.
      embedding_dropout: the same of a value of the embeddings.
    """

    vocabulary: Size = 20_000
    classes: Size = 2
    embedding: Size = 100
    widths: tuple[Size, ...] = (3, 4, 5)
    filters: Size = 100
    activation: Activation = "relu"
    pool: Pool = "max"
    dropout: Fraction | None = 0.5
    embedding_dropout: Fraction | None = None

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        """Logits [B, classes] of tokens [B, T]; -1 is none."""
        valid = tokens >= 0
        x = embedded(self, "embedding", self.vocabulary, self.embedding, 0.02, tokens)
        x = jnp.where(valid[..., None], Dropout(self.embedding_dropout)(x, train), 0)  # [B, T, E]
        found = []
        for width in self.widths:
            y = nn.Conv(self.filters, (width,), name=f"conv{width}")(x)  # [B, T, F]
            found.append(pooled(activate(y, self.activation), valid, self.pool))
        y = jnp.concatenate(found, -1)  # [B, widths * F]
        y = Dropout(self.dropout)(y, train)
        return nn.Dense(self.classes, name="head")(y)
