"""The neural probabilistic language model of Bengio et al. (2003), JMLR 3, section 2."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.models.transformer import Dense, embedded

Array = jax.Array


class NeuralNgram(nn.Module):
    """An MLP over the embeddings of the last few tokens: logits b + U tanh(d + H x).

    Attributes:
      vocabulary: number of tokens.
      context: how many tokens it sees; before the first stands a vector for none.
      embedding: width of a token's embedding.
      hidden: units.
      dropout: probability of zeroing a hidden unit in training; None for none.
    """

    vocabulary: Size = 32
    context: Size = 3
    embedding: Size = 16
    hidden: Size = 128
    dropout: Fraction | None = None

    def start(self, batch_size: int, length: int) -> Any:
        """What is carried before the first token: the last tokens, of which there are none."""
        return {"last": jnp.full((batch_size, self.context - 1), -1, jnp.int32)}

    @nn.compact
    def __call__(self, tokens: Array, train: bool, cache: Any = None) -> Any:
        """Logits [B, T, V] of the tokens after each of tokens [B, T]; -1 is none.

        Args:
          tokens: none may stand after the others in a row.
          train: with dropout.
          cache: of `start` or of an earlier call; the result is then (logits, cache).
        """
        before = self.start(len(tokens), 0)["last"] if cache is None else cache["last"]
        known = jnp.concatenate([before, tokens], 1)  # [B, context - 1 + T]
        # Tokens from 1 on: 0 stands for none.
        x = embedded(self, "embedding", self.vocabulary + 1, self.embedding, 1., known + 1)
        length = tokens.shape[1]
        x = jnp.concatenate([x[:, i:i + length] for i in range(self.context)], -1)
        x = jnp.tanh(Dense(self.hidden, x.shape[-1] ** -0.5, bias=True, name="dense1")(x))
        x = Dropout(self.dropout)(x, train)
        logits = Dense(self.vocabulary, self.hidden ** -0.5, bias=True, name="head")(x)
        if cache is None:
            return logits
        # The last ones of each row: those from the place where its tokens end.
        ends = (tokens >= 0).sum(1)[:, None] + jnp.arange(self.context - 1)
        return logits, {"last": jnp.take_along_axis(known, ends, 1)}
