"""A recurrent network that reads a question and points at its answer in a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.models.rnn import Kind, Stack
from jaxdl.models.transformer import embedded

Array = jax.Array


class AttentionReader(nn.Module):
    """Which words of a text does a question look at?

    Kadlec et al. (2016), https://arxiv.org/abs/1603.01547, section 3: one bidirectional network
    reads the question, another one the text, and the score of a word is the product of what the
    former says at its end with what the latter says there. Here the question has a dense layer for
    where an answer begins and one for where it ends; theirs are single words.

    Attributes:
      vocabulary: number of tokens.
      embedding: width of a token's embedding, which question and text share.
      cell: "lstm", "gru" or "simple", as `jaxdl.recurrence` defines them.
      width: of the state of each direction, H.
      dropout: probability of zeroing, in training, a value of the embeddings; None for none.
    """

    vocabulary: Size = 8_000
    embedding: Size = 128
    cell: Kind = "gru"
    width: Size = 128
    dropout: Fraction | None = 0.2

    @nn.compact
    def __call__(self, tokens: Array, train: bool, kind: Array) -> Array:
        """Two logits of each token, [B, T, 2].

        Args:
          tokens: int [B, T], -1 for none.
          train: with dropout.
          kind: int [B, T], 0 where the question is and 1 where the text is.
        """
        x = embedded(self, "embedding", self.vocabulary, self.embedding, 0.1, tokens)
        x, there = Dropout(self.dropout)(x, train), tokens >= 0

        def read(name: str, valid: Array) -> tuple[Array, Array]:
            """(what is said at each token [B, T, 2 H], and at the ends [B, 2 H])."""
            outputs, after = Stack(cell=self.cell, width=self.width, layers=1, bidirectional=True,
                                   dropout=None, name=name)(x, train, valid=valid)
            return outputs, jnp.concatenate([state[0] for state in after[-1]], -1)

        asked = read("question", there & (kind == 0))[1]
        said = read("text", there & (kind == 1))[0]
        asked = nn.Dense(4 * self.width, use_bias=False, name="sides")(asked)
        return jnp.einsum("bth,bkh->btk", said, asked.reshape(len(asked), 2, -1))
