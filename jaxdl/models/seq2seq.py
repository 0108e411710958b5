"""Recurrent encoder and decoder, without attention or with one of two.

Sutskever et al. (2014), https://arxiv.org/abs/1409.3215, hand over the encoder's last state alone.
Bahdanau et al. (2015), https://arxiv.org/abs/1409.0473, let each step of the decoder look at all
states of the encoder before it computes its own; Luong et al. (2015),
https://arxiv.org/abs/1508.04025, after it, so that the recurrence does not wait for it.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdl import recurrence
from jaxdl.attention import LEAST
from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.matmul import contract
from jaxdl.models.rnn import Kind, Stack, zeros
from jaxdl.models.transformer import Dense, embedded

Array = jax.Array


class Seq2SeqRNN(nn.Module):
    """A bidirectional encoder, and a decoder whose first state is made of the encoder's last ones.

    Attributes:
      vocabulary: number of tokens, of both sides.
      width: of the decoder's state, and of the encoder's in each direction, H.
      layers: of the encoder, and of the decoder; with "bahdanau" the decoder has one.
      embedding: width of a token's embedding, which both sides share.
      attention: "luong" (his "general" score), "bahdanau", or None.
      dropout: of inputs of layers and of the head, in training; None for none.
      cell: "gru", "lstm" or "simple".
    """

    vocabulary: Size = 4_000
    width: Size = 256
    layers: Size = 1
    embedding: Size = 128
    attention: Literal["luong", "bahdanau"] | None = "luong"
    dropout: Fraction | None = None
    cell: Kind = "gru"

    def start(self, batch_size: int, length: int) -> Any:
        """What is carried before the first token; the encoder's part comes with the source."""
        layers = 1 if self.attention == "bahdanau" else self.layers
        return {"state": zeros(self.cell, layers, 1, batch_size, self.width)}

    @nn.compact
    def __call__(self, source: Array | None, tokens: Array, train: bool, cache: Any = None) -> Any:
        """Logits [B, T, V] of the tokens after each of tokens [B, T], given source [B, S]; -1 is
        none, after all others of a row.

        Args:
          source: None if what is carried has it already.
          tokens: of the target.
          train: with dropout.
          cache: what was carried so far, of `start` or of an earlier call; the result is then
            (logits, what is carried on).
        """
        if source is not None:
            memory, mask, state = self.encoded(source, train)
        else:
            memory, mask, state = cache["memory"], cache["mask"], cache["state"]
        x = embedded(self, "embedding", self.vocabulary, self.embedding, 1., tokens)
        valid = None if cache is None else tokens >= 0
        if self.attention == "bahdanau":
            x = Dropout(self.dropout)(x, train)
            x, after = Additive(cell=self.cell, width=self.width, name="decoder")(
                x, memory, mask, state[0][0], valid)
        else:
            decoder = Stack(cell=self.cell, width=self.width, layers=self.layers,
                            dropout=self.dropout, name="decoder")
            x, after = decoder(x, train, state, valid)  # [B, T, H]
            if self.attention == "luong":
                score = Dense(memory.shape[-1], self.width ** -0.5, False, name="score")(x)
                score = contract_last(score, memory)  # [B, T, S]
                share = jax.nn.softmax(jnp.where(mask[:, None], score, LEAST)).astype(x.dtype)
                seen = jnp.einsum("bts,bsh->bth", share, memory)
                x = jnp.tanh(Dense(self.width, self.width ** -0.5, False, name="attended")(
                    jnp.concatenate([seen, x], -1)))
        x = Dropout(self.dropout)(x, train)
        logits = Dense(self.vocabulary, self.width ** -0.5, bias=True, name="head")(x)
        if cache is None:
            return logits
        return logits, {"state": after, "memory": memory, "mask": mask}

    def encoded(self, source: Array, train: bool) -> tuple[Array, Array, Any]:
        """(the encoder's states [B, S, 2 H], where they count, the decoder's first states)."""
        mask = source >= 0
        x = embedded(self, "source_embedding", self.vocabulary, self.embedding, 1., source)
        encoder = Stack(cell=self.cell, width=self.width, layers=self.layers, bidirectional=True,
                        dropout=self.dropout, name="encoder")
        memory, last = encoder(x, train, None, mask)
        bridged, kept = [], last[-1:] if self.attention == "bahdanau" else last
        for i, layer in enumerate(kept):
            both = zip(*layer, strict=True)  # the arrays of a state, forwards and backwards
            bridged.append((tuple(
                jnp.tanh(nn.Dense(self.width, name=f"bridge{i + 1}_{j + 1}")(
                    jnp.concatenate(pair, -1))) for j, pair in enumerate(both)),))
        return memory, mask, tuple(bridged)


class Additive(nn.Module):
    """One recurrent layer, each step of which sees x_t and a mean of the memory that is weighted by
    softmax_s(v . tanh(W h_{t-1} + U m_s)): Bahdanau et al. (2015), section 3.1 and A.1.2."""

    cell: Kind
    width: int

    @nn.compact
    def __call__(self, x: Array, memory: Array, mask: Array, before: Any,
                 valid: Array | None) -> tuple[Array, Any]:
        inputs = x.shape[-1]
        scale = self.width ** -0.5
        gates = 1 if self.cell == "simple" else 4
        inputs += memory.shape[-1]
        kernel = self.param("kernel", _uniform(scale), (gates * self.width, inputs + self.width))
        if self.cell == "gru":  # Of the last two gates one sees the inputs alone, one h alone.
            rows = jnp.arange(4 * self.width)[:, None] // self.width
            columns = jnp.arange(inputs + self.width) < inputs
            kernel = jnp.where((rows == 2) & ~columns | (rows == 3) & columns, 0, kernel)
        bias = self.param("bias", nn.initializers.zeros, (gates * self.width,))
        query = self.param("query", _uniform(scale), (self.width, self.width))
        energy = self.param("energy", _uniform(scale), (self.width,))
        keys = nn.Dense(self.width, use_bias=False, name="key")(memory)  # [B, S, A]
        cell: Any = getattr(recurrence, self.cell)

        def step(state: Any, at: Any) -> Any:
            x_t, valid_t = at  # [B, E]
            score = jnp.tanh((state[0].T @ query)[:, None] + keys) @ energy
            share = jax.nn.softmax(jnp.where(mask, score, LEAST))
            seen = jnp.einsum("bs,bsh->bh", share, memory)
            z = contract(kernel, jnp.concatenate([x_t.T, seen.T, state[0]]), 0) + bias[:, None]
            new = cell(state, z)
            if valid_t is not None:
                new = tuple(jnp.where(valid_t, a, b) for a, b in zip(new, state, strict=True))
            return new, new[0].T

        state = tuple(s.T for s in before)
        last, out = lax.scan(step, state, (x.swapaxes(0, 1), None if valid is None else valid.T))
        return out.swapaxes(0, 1), ((tuple(s.T for s in last),),)


def contract_last(a: Array, b: Array) -> Array:
    """a [B, T, H] b^T [B, H, S], summed in float32."""
    return jnp.einsum("bth,bsh->bts", a, b,
                      preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _uniform(scale: float) -> Any:
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -scale, scale)
