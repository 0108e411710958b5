"""Transformers: the block that all of them share, and the decoder-only language model."""

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.attention import attention
from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Dropout
from jaxdl.matmul import matmul
from jaxdl.task import REMAT, Remat
from jaxdl.weights import Published

Array = jax.Array
Positions = Literal["learned", "sinusoidal", "rotary"]
Norm = Literal["layer", "rms"]
Unit = Literal["gelu", "gelu_exact", "relu", "swiglu"]


def gpt2(name: str) -> str:
    """The name of a variable in OpenAI's GPT-2, as it is published."""
    name = re.sub(r"^block(\d+)\.", lambda m: f"h.{int(m[1]) - 1}.", name)
    for ours, theirs in ((".norm1.", ".ln_1."), (".norm2.", ".ln_2."), (".project.",
                          ".attn.c_proj."), (".query_key_value.", ".attn.c_attn."),
                         (".dense1.", ".mlp.c_fc."), (".dense2.", ".mlp.c_proj.")):
        name = name.replace(ours, theirs)
    return {"embedding": "wte.weight", "positions": "wpe.weight"}.get(
        name, re.sub(r"^norm\.", "ln_f.", re.sub(r"^head\.", "lm_head.", name)))


# The causal mask, and the head, which is the table of tokens once more.
BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)|(transformer\.)?lm_head\.weight"


class Transformer(nn.Module):
    """GPT: embeddings of tokens and positions, blocks, a last layer norm, and logits.

    Radford et al. (2019), section 2.3: each block is x + attention(norm(x)), then x + MLP(norm(x)),
    with causal attention and an MLP of 4 x width units and GELU (its tanh form). Weights start
    normal with deviation 0.02, those of the products that end a branch with 0.02 / sqrt(2 layers).

    The default, with a vocabulary of 65, is the model that nanoGPT trains on Shakespeare's
    characters: 10,745,088 parameters, of which 98,304 for positions; 10,770,816 with biases.
    GPT-2 small is vocabulary 50,257, layers 12, width 768, heads 12, block 1,024, bias.

    The residual stream, statistics, softmax and all sums are float32; parameters in bfloat16 make
    the inputs of products so.

    Attributes:
      vocabulary: number of tokens.
      layers: number of blocks.
      width: of the residual stream, D.
      heads: attention heads, each of width / heads.
      block: the most tokens that it sees at once; shorter sequences are fine.
      dropout: probability of zeroing, in training, a value of the embeddings, of an attention's
        weights or of a branch's output; None for none.
      bias: add biases to products and norms, as GPT-2 does.
      tied: the head's weights are the token embeddings.
      kv_heads: heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al.
        2023); None for as many as there are heads.
      positions: "learned" for each place of the block; "sinusoidal", which are not (Vaswani et al.
        2017, section 3.5); or "rotary": keys and queries are turned by their place (Su et al. 2021,
        section 3.2).
      norm: "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019).
      unit: of the MLP: "gelu" in its tanh form, "gelu_exact", "relu", or "swiglu" (Shazeer 2020).
      hidden: units of the MLP; None for 4 x width.
      scan: stack the parameters of the blocks, [layers, ...], and loop over them: as fast to
        compile for 100 layers as for one.
      remat: what the backward pass recomputes of each block, as `LossTask.remat` does of a loss.
    """

    vocabulary: Size = 256
    layers: Size = 6
    width: Size = 384
    heads: Size = 6
    block: Size = 256
    dropout: Fraction | None = None
    bias: bool = False
    tied: bool = True
    kv_heads: Size | None = None
    positions: Positions = "learned"
    norm: Norm = "layer"
    unit: Unit = "gelu"
    hidden: Size | None = None
    scan: bool = False
    remat: Remat | None = None

    bfloat16_on_cpu: ClassVar[bool] = True

    @property
    def published(self) -> dict[str, Callable[[str], str]]:
        """Names of GPT-2's weights, for a model of its form, and as nanoGPT keeps them."""
        of_gpt2 = (self.positions == "learned" and self.norm == "layer" and self.unit == "gelu"
                   and self.kv_heads is None and not self.scan)
        if not of_gpt2:
            return {}
        ignored = BUFFERS if self.tied else BUFFERS.partition("|(tr")[0]
        return {"gpt2": Published(gpt2, as_here=True, prefix="transformer.", ignored=ignored),
                "nanogpt": Published(lambda name: "transformer." * (not name.startswith("head"))
                                     + gpt2(name), ignored=f"(transformer\\.)?({ignored})")}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)

    def start(self, batch_size: int, length: int) -> Any:
        """The cache before the first token, with room for `length` tokens: keys and values of each
        layer, and how many tokens of each row they have."""
        if length > self.block:
            raise UserError(f"Transformer: {length} tokens in a sequence, but block={self.block}.")
        shape = batch_size, self.kv_heads or self.heads, length, self.width // self.heads
        if self.scan:
            layers: Any = empty((self.layers, *shape))
        else:
            layers = tuple(empty(shape) for _ in range(self.layers))
        return {"layers": layers, "length": jnp.zeros(batch_size, jnp.int32)}

    def row_axes(self, cache: Any) -> Any:
        """Of each leaf of the cache the axis that counts rows."""
        return {"layers": jax.tree.map(lambda x: int(self.scan), cache["layers"]), "length": 0}

    @nn.compact
    def __call__(self, tokens: Array, train: bool, cache: Any = None,
                 segment: Array | None = None) -> Any:
        """Logits [B, T, V] of the tokens after each of tokens [B, T]; -1 is none.

        Args:
          tokens: none may stand after the others in a row.
          train: with dropout.
          cache: of the tokens before these, of `start` or of an earlier call; the result is then
            (logits, the cache with these).
          segment: int [B, T], which document each token belongs to, where a row holds several that
            shall not see each other; positions count from the beginning of each.
        """
        length = tokens.shape[1]  # tokens  # [B, T]
        if length > self.block:
            raise UserError(f"Transformer: {length} tokens in a sequence, but block={self.block}.")
        places, mask = jnp.arange(length), None
        if cache is not None:
            places = cache["length"][:, None] + places  # [B, T]
        if segment is not None:
            begins = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))
            places = places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
            mask = segment[:, :, None] == segment[:, None]
        known = tables(self)
        x = Dropout(self.dropout)(placed(self, known, tokens, places), train)  # [B, T, D]
        x, layers = blocks(self, x, train, places, mask, None if cache is None
                           else cache["layers"], causal=True)
        x = normalised(self.norm, self.bias, "norm")(x)
        if self.tied:
            table = known[0]
            logits = matmul(x.astype(table.dtype), table, transposed=True)  # [B, T, V]
        else:
            logits = Dense(self.vocabulary, 0.02, bias=False, name="head")(x)
        if cache is None:
            return logits
        return logits, {"layers": layers, "length": cache["length"] + (tokens >= 0).sum(1)}


def check_heads(model: Any) -> None:
    """Raises a UserError for numbers of heads that do not divide."""
    name = type(model).__name__
    if model.width % model.heads:
        raise UserError(f"{name}: width={model.width} is not a multiple of heads={model.heads}.")
    if model.kv_heads is not None and model.heads % model.kv_heads:
        raise UserError(f"{name}: heads={model.heads} is not a multiple of kv_heads="
                        f"{model.kv_heads}.")
    if model.positions == "rotary" and model.width // model.heads % 2:
        raise UserError(f"{name}: rotary positions turn pairs, and a head has "
                        f"{model.width // model.heads} units.")


def empty(shape: tuple[int, ...]) -> dict[str, Array]:
    return {"k": jnp.zeros(shape), "v": jnp.zeros(shape)}


def embedded(module: nn.Module, name: str, vocabulary: int, width: int, deviation: float,
             tokens: Array) -> Array:
    """Vectors of tokens [B, T] out of a table of the module's: [B, T, width]. Those of -1 are any.

    A sum over the batch is exact in float32 only, and so is the gradient of this one.
    """
    table = module.param(name, normal(deviation), (vocabulary, width))
    exact = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    return exact[jnp.maximum(tokens, 0)].astype(table.dtype)


def tables(module: Any) -> tuple[Array, Array | None]:
    """The parameters of a module that stand for tokens, and for places where those are learned."""
    # Where positions are of size one, so are the tokens (Vaswani et al. 2017, section 3.4).
    deviation = module.width ** -0.5 if module.positions == "sinusoidal" else 0.02
    tokens = module.param("embedding", normal(deviation), (module.vocabulary, module.width))
    if module.positions != "learned":
        return tokens, None
    return tokens, module.param("positions", normal(0.02), (module.block, module.width))


def placed(module: Any, known: tuple[Array, Array | None], tokens: Array, places: Array) -> Array:
    """Embeddings of tokens [B, T], and of their places [T] or [B, T] unless those are rotary.

    A sum over the batch is exact in float32 only, and so are the gradients of the tables.
    """
    table, positions = known
    exact = jnp.promote_types(table.dtype, jnp.float32)
    x = table.astype(exact)[jnp.maximum(tokens, 0)]
    if positions is not None:
        return x + positions.astype(exact)[places]
    if module.positions == "sinusoidal":
        return x * module.width ** 0.5 + jnp.asarray(waves(module.block, module.width),
                                                    exact)[places]
    return x


def waves(length: int, width: int) -> np.ndarray:
    """Sines and cosines of wavelengths 2 pi to 20,000 pi: [length, width]."""
    angles = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    both = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, -1)
    return both[:, :width]


def blocks(module: Any, x: Array, train: bool, places: Array, mask: Array | None,
           cache: Any = None, *, causal: bool, crosses: bool = False, memory: Array | None = None,
           memory_mask: Array | None = None, name: str = "block",
           **more: Any) -> tuple[Array, Any]:
    """The blocks of a module, of its sizes: (x, cache), called within its compact method. `more`
    are further options of a block."""
    options = dict(heads=module.heads, layers=module.layers, dropout=module.dropout,
                   bias=module.bias, kv_heads=module.kv_heads, norm=module.norm, unit=module.unit,
                   hidden=module.hidden, rotary=module.positions == "rotary", causal=causal,
                   crosses=crosses, **more)
    block: Any = Block
    if module.remat is not None:
        block = nn.remat(Block, policy=REMAT[module.remat], prevent_cse=not module.scan,
                         static_argnums=(2,))
    if module.scan:
        scanned = nn.scan(
            lambda block, x, cache, *more: block(x, train, *more[:2], cache, *more[2:]),
            length=module.layers, variable_axes={"params": 0},
            in_axes=(0, *[nn.broadcast] * 4),  # pyright: ignore[reportArgumentType]
            out_axes=0,
            split_rngs={"params": True, "dropout": True})
        return scanned(block(**options, name=f"{name}s"), x, cache, places, mask, memory,
                       memory_mask)
    caches = []
    for i in range(module.layers):
        x, after = block(**options, name=f"{name}{i + 1}")(
            x, train, places, mask, None if cache is None else cache[i], memory, memory_mask)
        caches.append(after)
    return x, None if cache is None else tuple(caches)


class Block(nn.Module):
    """x + attention(norm(x)), with a memory x + attention(norm(x), memory), then x + MLP(norm(x));
    x [B, T, D]. With `norm_after` each part is norm(x + part(x)) instead, as Vaswani et al. (2017)
    had it."""

    heads: int
    layers: int
    dropout: Any
    bias: bool
    kv_heads: int | None = None
    norm: Norm = "layer"
    unit: Unit = "gelu"
    hidden: int | None = None
    rotary: bool = False
    causal: bool = True
    crosses: bool = False
    norm_after: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool, places: Array | None = None,
                 mask: Array | None = None, cache: Any = None, memory: Array | None = None,
                 memory_mask: Array | None = None) -> tuple[Array, Any]:
        """(x, cache).

        Args:
          x: [B, T, D].
          train: with dropout.
          places: of the tokens, [T] or [B, T].
          mask: bool [B, T or 1, T], what a token sees; None for all, or all before it.
          cache: "k" and "v" [B, kv_heads, L, D / heads], into which those of the tokens are
            written at their places; a token then sees all up to its own.
          memory: of another sequence, [B, S, D], to which the second attention goes; None if its
            keys and values are in the cache.
          memory_mask: bool [B, 1, S].
        """
        width, last = x.shape[-1], 0.02 / (2 * self.layers) ** 0.5

        def added(x: Array, name: str, part: Callable[[Array], Array]) -> Array:
            norm = normalised(self.norm, self.bias, name, self.epsilon)
            y = Dropout(self.dropout)(part(x if self.norm_after else norm(x)), train)
            return norm(x + y) if self.norm_after else x + y

        def attention(y: Array) -> Array:
            nonlocal cache
            y, cache = self.attend(y, train, places, mask, cache)
            return Dense(width, last, self.bias, name="project")(y)

        def recall(y: Array) -> Array:
            nonlocal cache
            y, cache = self.recall(y, train, memory, memory_mask, cache)
            return Dense(width, last, self.bias, name="project_memory")(y)

        def mlp(y: Array) -> Array:
            hidden = (self.hidden or 4 * width) * (1 + (self.unit == "swiglu"))
            y = activated(Dense(hidden, 0.02, self.bias, name="dense1")(y), self.unit)
            return Dense(width, last, self.bias, name="dense2")(y)

        x = added(x, "norm1", attention)
        if self.crosses:
            x = added(x, "norm_memory", recall)
        return added(x, "norm2", mlp), cache

    def attend(self, y: Array, train: bool, places: Array | None, mask: Array | None,
               cache: Any) -> tuple[Array, Any]:
        """Attention of the tokens to each other, and to those in the cache: [B, T, D]."""
        batch, length, width = y.shape
        size, groups = width // self.heads, self.kv_heads or self.heads
        y = Dense((self.heads + 2 * groups) * size, 0.02, self.bias, name="query_key_value")(y)
        y = y.reshape(batch, length, -1, size)
        q, k, v = jnp.split(y, (self.heads, self.heads + groups), 2)
        if self.rotary and places is not None:
            q, k = turned(q, places), turned(k, places)
        causal = self.causal
        if cache is not None and places is not None:
            cache = {**cache, "k": written(cache["k"], k, places),
                     "v": written(cache["v"], v, places)}
            k, v = (cache[name].swapaxes(1, 2).astype(y.dtype) for name in "kv")
            mask, causal = jnp.arange(k.shape[1]) <= places[..., None], False  # [B, T, L]
        y = attention(q, k, v, causal=causal, mask=mask, dropout=Dropout(self.dropout), train=train)
        return y.reshape(batch, length, width), cache

    def recall(self, y: Array, train: bool, memory: Array | None, mask: Array | None,
               cache: Any) -> tuple[Array, Any]:
        """Attention of the tokens to the memory: [B, T, D]."""
        batch, length, width = y.shape
        size = width // self.heads
        q = Dense(width, 0.02, self.bias, name="query_memory")(y).reshape(batch, length, -1, size)
        if memory is not None:
            both = Dense(2 * width, 0.02, self.bias, name="key_value_memory")(memory)
            k, v = jnp.split(both.reshape(batch, memory.shape[1], -1, size), 2, 2)
            if cache is not None:
                cache = {**cache, "memory_k": k, "memory_v": v}
        else:
            k, v = cache["memory_k"].astype(y.dtype), cache["memory_v"].astype(y.dtype)
        y = attention(q, k, v, causal=False, mask=mask, dropout=Dropout(self.dropout), train=train)
        return y.reshape(batch, length, width), cache


def written(kept: Array, parts: Array, places: Array) -> Array:
    """kept [B, heads, L, D], with parts [B, T, heads, D] at places [B, T]; not those beyond L."""
    row = jnp.arange(len(parts))[:, None]
    if places.size == 1:
        # One update XLA makes a slice, repeats that for each of its readers on CPU, and copies the
        # whole cache three times to do so. A second one, which is dropped, leaves it in place.
        row, parts = jnp.zeros((2, 1), jnp.int32), jnp.concatenate([parts, parts])
        places = jnp.concatenate([places, jnp.full_like(places, kept.shape[2])])
    return kept.at[row, :, places].set(parts.astype(kept.dtype), mode="drop")


def turned(x: Array, places: Array) -> Array:
    """x [B, T, heads, D], of which each pair (i, i + D / 2) is turned by place / 10,000^(2i / D)
    (Su et al. 2021, section 3.4.2, with the pairs as GPT-NeoX and Llama choose them)."""
    half = x.shape[-1] // 2
    exact = jnp.promote_types(x.dtype, jnp.float32)
    angles = places[..., None, None] * 10_000. ** (-jnp.arange(half, dtype=exact) / half)
    a, b = x[..., :half].astype(exact), x[..., half:].astype(exact)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def activated(x: Array, unit: Unit) -> Array:
    """The hidden units of an MLP; of "swiglu" half as many as x has."""
    if unit == "swiglu":
        gate, x = jnp.split(x, 2, -1)
        return nn.silu(gate) * x
    return nn.relu(x) if unit == "relu" else nn.gelu(x, approximate=unit == "gelu")


class Dense(nn.Module):
    """x W + b: x [B, T, K] in the type of W, b added in float32; W starts normal."""

    features: int
    deviation: float
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", normal(self.deviation), (x.shape[-1], self.features))
        y = matmul(x.astype(kernel.dtype), kernel)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            exact = jnp.promote_types(y.dtype, jnp.float32)  # so that the bias's gradient is, too
            y = (y.astype(exact) + bias.astype(exact)).astype(y.dtype)
        return y


def normalised(kind: Norm, bias: bool, name: str, epsilon: float = 1e-5) -> Any:
    """Normalisation over the last axis, with a scale."""
    if kind == "rms":
        return nn.RMSNorm(epsilon=epsilon, name=name)
    return nn.LayerNorm(epsilon=epsilon, use_bias=bias, name=name)


def normal(deviation: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(deviation)
