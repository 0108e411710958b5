"""Recurrent networks: the stack of layers that they share, and language models of it."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import recurrence
from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.models.transformer import Dense, embedded

Array = jax.Array
Kind = Literal["lstm", "gru", "simple"]
State = tuple[Array, ...]  # of a layer in one direction: h, and the cell of an LSTM
GATES: dict[str, int] = {"lstm": 4, "gru": 3, "simple": 1}


class RNN(nn.Module):
    """A language model: embedding, recurrent layers, and logits of the next token.

    Karpathy (2015), http://karpathy.github.io/2015/05/21/rnn-effectiveness.

    Attributes:
      vocabulary: number of tokens.
      width: of the state of each layer, H.
      layers: recurrent layers on top of each other.
      embedding: width of a token's embedding.
      dropout: probability of zeroing, in training, an input of a layer or of the head, but never
        of the recurrence (Zaremba et al. 2014); None for none.
      cell: "lstm", "gru" or "simple", as `jaxdl.recurrence` defines them.
    """

    vocabulary: Size = 256
    width: Size = 256
    layers: Size = 1
    embedding: Size = 64
    dropout: Fraction | None = None
    cell: Kind = "lstm"

    def start(self, batch_size: int, length: int) -> Any:
        """What is carried before the first token, whatever the length of what will come."""
        return {"state": zeros(self.cell, self.layers, 1, batch_size, self.width)}

    @nn.compact
    def __call__(self, tokens: Array, train: bool, cache: Any = None) -> Any:
        """Logits [B, T, V] of the tokens after each of tokens [B, T]; -1 is none.

        Args:
          tokens: none may stand after the others in a row.
          train: with dropout.
          cache: what was carried from tokens before these, of `start` or of an earlier call; the
            result is then (logits, what is carried on).
        """
        x = embedded(self, "embedding", self.vocabulary, self.embedding, 1., tokens)  # [B, T, E]
        stack = Stack(cell=self.cell, width=self.width, layers=self.layers, dropout=self.dropout,
                      name="stack")
        if cache is None:  # What comes after the last token of a row is no one's concern.
            x, _ = stack(x, train)
        else:
            x, after = stack(x, train, cache["state"], tokens >= 0)
            cache = {"state": after}
        x = Dropout(self.dropout)(x, train)  # [B, T, H]
        logits = Dense(self.vocabulary, self.width ** -0.5, bias=True, name="head")(x)
        return logits if cache is None else (logits, cache)


class Stack(nn.Module):
    """Recurrent layers on top of each other, over x [B, T, K].

    Weights of a layer start uniform within 1 / sqrt(width), the forget gate's bias of an LSTM at
    one (Jozefowicz et al. 2015, section 2.2).

    Attributes:
      cell: as in RNN.
      width: of the state of each layer and direction, H.
      layers: how many.
      bidirectional: each layer reads the sequence in both directions (Schuster & Paliwal 1997), and
        gives both states, [B, T, 2 H].
      dropout: of the inputs of each layer, in training; None for none.
    """

    cell: Kind
    width: int
    layers: int = 1
    bidirectional: bool = False
    dropout: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool, before: tuple[tuple[State, ...], ...] | None = None,
                 valid: Array | None = None) -> tuple[Array, tuple[tuple[State, ...], ...]]:
        """(outputs [B, T, H], the last states [B, H]: of each layer, of each direction).

        Args:
          x: [B, T, K].
          train: with dropout.
          before: states to begin with, in the form of the last ones; None for zeros.
          valid: bool [B, T], where there is an input; elsewhere states stay as they are.
        """
        after: list[tuple[State, ...]] = []
        for i in range(self.layers):
            x = Dropout(self.dropout)(x, train)
            outputs, lasts = [], []
            for direction in range(1 + self.bidirectional):
                turn: Any = (lambda a: a) if direction == 0 else _reversed
                layer = Layer(cell=self.cell, width=self.width,
                              name=f"layer{i + 1}{'_reverse' if direction else ''}")
                h, last = layer(turn(x), None if before is None else before[i][direction],
                                None if valid is None else turn(valid))
                outputs.append(turn(h))
                lasts.append(last)
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
            after.append(tuple(lasts))
        return x, tuple(after)


class Layer(nn.Module):
    """One recurrent layer in one direction, over x [B, T, K]; the kernel's rows are the gates in
    the order of `jaxdl.recurrence`, its columns K inputs and H units."""

    cell: Kind
    width: int

    @nn.compact
    def __call__(self, x: Array, before: State | None, valid: Array | None) -> tuple[Array, State]:
        def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -1, 1) * self.width ** -0.5

        def start(key: Array, shape: tuple[int, ...]) -> Array:
            first = self.width if self.cell == "lstm" else 0
            return jnp.zeros(shape).at[first:2 * first].set(1)

        rows, inputs = GATES[self.cell] * self.width, x.shape[2]
        kernel = self.param("kernel", uniform, (rows, inputs + self.width))
        bias = self.param("bias", start, (rows,))
        if self.cell == "gru":  # The part of x and that of h in the new state are told apart.
            own = self.param("bias_recurrent", nn.initializers.zeros, (self.width,))
            new = kernel[2 * self.width:]
            from_x = jnp.pad(new[:, :inputs], ((0, 0), (0, self.width)))
            from_h = jnp.pad(new[:, inputs:], ((0, 0), (inputs, 0)))
            kernel = jnp.concatenate([kernel[:2 * self.width], from_x, from_h])
            bias = jnp.concatenate([bias, own])
        state: State = before or zeros(self.cell, 1, 1, len(x), self.width)[0][0]
        # A sum over time, which is what the cell of an LSTM is, wants float32.
        exact = jnp.promote_types(x.dtype, jnp.float32)
        h, *cells = (s.T for s in state)
        recur: Any = recurrence.recur
        outputs, last = recur(
            getattr(recurrence, self.cell), kernel, bias, x.transpose(1, 2, 0),
            (h.astype(x.dtype), *(c.astype(exact) for c in cells)),
            None if valid is None else valid.T[:, None])
        return outputs.transpose(2, 0, 1), tuple(s.T for s in last)


def zeros(cell: Kind, layers: int, directions: int, batch_size: int,
          width: int) -> tuple[tuple[State, ...], ...]:
    """The states before the first input: of each layer, of each direction."""
    one = (jnp.zeros((batch_size, width)),) * (2 if cell == "lstm" else 1)
    return ((one,) * directions,) * layers


def _reversed(x: Array) -> Array:
    return x[:, ::-1]
