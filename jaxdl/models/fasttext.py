"""The mean of a text's words and pairs of words: a linear model with a narrow waist."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.models.textcnn import pooled
from jaxdl.models.transformer import embedded

Array = jax.Array


class FastText(nn.Module):
    """The mean of the embeddings of all tokens and of all pairs of neighbours, and a dense head.

    Joulin et al. (2016), https://arxiv.org/abs/1607.01759, section 2. A pair has no row of its own
    in its table, but one by its hash (section 2.2), which pairs may share.

    Attributes:
      vocabulary: number of tokens.
      classes: number of logits.
      embedding: width of an embedding.
      buckets: rows of the table of pairs; None for no pairs.
      dropout: probability of zeroing, in training, a value of the mean; None for none.
    """

    vocabulary: Size = 20_000
    classes: Size = 2
    embedding: Size = 10
    buckets: Size | None = 1 << 18
    dropout: Fraction | None = None

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        """Logits [B, classes] of tokens [B, T]; -1 is none."""
        valid = tokens >= 0
        x = embedded(self, "embedding", self.vocabulary, self.embedding, 0.01, tokens)
        if self.buckets is not None:
            both = valid[:, 1:] & valid[:, :-1]
            pairs = jnp.where(both, hashed(tokens[:, :-1], tokens[:, 1:], self.buckets), -1)
            # From zero: a pair that training has not seen says nothing.
            y = embedded(self, "pairs", self.buckets, self.embedding, 0., pairs)
            x, valid = jnp.concatenate([x, y], 1), jnp.concatenate([valid, both], 1)
        x = Dropout(self.dropout)(pooled(x, valid, "mean"), train)  # [B, E]
        return nn.Dense(self.classes, name="head")(x)


def hashed(first: Array, second: Array, buckets: int) -> Array:
    """A number below `buckets` for each pair of tokens, mixed as MurmurHash3 ends."""
    h = first.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) ^ second.astype(jnp.uint32)
    h = (h ^ h >> 16) * jnp.uint32(0x85EBCA6B)
    h = (h ^ h >> 13) * jnp.uint32(0xC2B2AE35)
    return ((h ^ h >> 16) % jnp.uint32(buckets)).astype(jnp.int32)
