"""Recurrent networks that read a text and say what it is."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.models.rnn import Kind, Stack
from jaxdl.models.textcnn import pooled
from jaxdl.models.transformer import embedded

Array = jax.Array


class TextRNN(nn.Module):
    """Embedding, recurrent layers, what they say over the whole text, and a dense head.

    "max" is as in Johnson & Zhang (2016), https://arxiv.org/abs/1602.02373, section 2: what a unit
    says where it says most, so that none has to remember it to the end. (Their LSTM reads one-hot
    words, in pieces of a text, and has neither input nor output gates.)

    Attributes:
      vocabulary: number of tokens.
      classes: number of logits.
      embedding: width of a token's embedding.
      cell: "lstm", "gru" or "simple", as `jaxdl.recurrence` defines them.
      width: of the state of each layer and direction, H.
      layers: recurrent layers on top of each other.
      bidirectional: read in both directions.
      pool: "max" or "mean" of the outputs over the text, or the "last" states.
      dropout: probability of zeroing, in training, a feature before the head; None for none.
      embedding_dropout: the same of a value of the embeddings, and of what a further layer gets.
    """

    vocabulary: Size = 20_000
    classes: Size = 2
    embedding: Size = 100
    cell: Kind = "lstm"
    width: Size = 64
    layers: Size = 1
    bidirectional: bool = True
    pool: Literal["max", "mean", "last"] = "max"
    dropout: Fraction | None = 0.5
    embedding_dropout: Fraction | None = None

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        """Logits [B, classes] of tokens [B, T]; -1 is none."""
        valid = tokens >= 0
        x = embedded(self, "embedding", self.vocabulary, self.embedding, 0.02, tokens)
        stack = Stack(cell=self.cell, width=self.width, layers=self.layers,
                      bidirectional=self.bidirectional, dropout=self.embedding_dropout,
                      name="stack")
        outputs, after = stack(x, train, valid=valid)  # [B, T, H] or [B, T, 2 H]
        if self.pool == "last":
            y = jnp.concatenate([state[0] for state in after[-1]], -1)
        else:
            y = pooled(outputs, valid, self.pool)
        y = Dropout(self.dropout)(y, train)
        return nn.Dense(self.classes, name="head")(y)
