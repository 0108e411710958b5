"""Generation of sequences, pure and jitted: sampling, greedy decoding, and beam search.

One interface serves attention with its cache and recurrence with its state:

    step(cache, tokens [B]) -> (logits [B, V] of what follows, cache)

where a cache is any pytree of arrays; a model whose leaves do not all count rows by their first
axis says so by `row_axes`. `Continues` makes that of a language model.

Rows do not know of each other: a row's tokens are a function of its prompt and its key alone, so
that neither padding nor the composition of a batch changes an output.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdl.config import Between, Fraction, Size

Array = jax.Array
Step = Callable[[Any, Array], tuple[Array, Any]]
NEVER = -1e30  # the logarithm of a probability of zero, finite so that sums of it are no NaN


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from the logits: the options apply in this order.

    Attributes:
      repetition_penalty: logits of tokens that the row has already are divided by it (Keskar
        et al. 2019, section 4.1), negative ones multiplied; None for no penalty.
      temperature: by which logits are divided; None takes the likeliest token (greedy).
      top_k: only the k likeliest tokens, and those just as likely as the k-th; None for all.
      top_p: only the likeliest tokens whose probabilities together reach p (Holtzman et al. 2020,
        section 3.1); None for all.
      min_p: only tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024,
        section 3); None for all.
    """

    repetition_penalty: Annotated[float, Between(1e-6)] | None = None
    temperature: Annotated[float, Between(1e-6)] | None = 1.
    top_k: Size | None = None
    top_p: Fraction | None = None
    min_p: Fraction | None = None

    def filtered(self, logits: Array, seen: Array) -> Array:
        """The logits [B, V] that a token is drawn by, where seen [B, V] is what a row has; NEVER
        for what is not drawn."""
        if self.repetition_penalty is not None:
            penalised = jnp.where(logits > 0, logits / self.repetition_penalty,
                                  logits * self.repetition_penalty)
            logits = jnp.where(seen, penalised, logits)
        if self.temperature is not None:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits >= least, logits, NEVER)
        if self.top_p is not None:
            order = jnp.argsort(-logits, axis=-1)
            sorted_ = jnp.take_along_axis(jax.nn.softmax(logits), order, -1)
            before = jnp.cumsum(sorted_, -1) - sorted_  # the probability of all likelier ones
            first = jnp.arange(logits.shape[-1]) == 0  # The likeliest stays, whatever p.
            kept = jnp.take_along_axis((before < self.top_p) | first, jnp.argsort(order, -1), -1)
            logits = jnp.where(kept, logits, NEVER)
        if self.min_p is not None:
            probability = jax.nn.softmax(logits)
            least = self.min_p * probability.max(-1, keepdims=True)
            logits = jnp.where(probability >= least, logits, NEVER)
        return logits

    def draw(self, logits: Array, seen: Array, keys: Array) -> Array:
        """A token for each row, int32 [B], by keys [B]."""
        logits = self.filtered(logits.astype(jnp.float32), seen)
        if self.temperature is None:
            return logits.argmax(-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


class Going(NamedTuple):
    """What generation carries from token to token.

    Attributes:
      step: tokens drawn so far, int32.
      cache: of the model.
      logits: of the next token, [B, V].
      seen: which tokens a row has, [B, V].
      done: rows that have stopped, [B].
    """

    step: Array
    cache: Any
    logits: Array
    seen: Array
    done: Array


def begin(logits: Array, cache: Any, prompt: Array) -> Going:
    """Before the first token: logits [B, V] and the cache after a prompt [B, P], -1 for none."""
    vocabulary = logits.shape[-1]
    rows = jnp.arange(len(prompt))[:, None]
    seen = jnp.zeros((len(prompt), vocabulary), bool).at[
        rows, jnp.where(prompt >= 0, prompt, vocabulary)].set(True, mode="drop")
    return Going(jnp.int32(0), cache, logits, seen, jnp.zeros(len(prompt), bool))


def advance(step: Step, going: Going, keys: Array, sampling: Sampling,
            stop: tuple[int, ...]) -> tuple[Going, Array]:
    """One more token for each row, -1 for rows that have stopped: (what is carried on, [B])."""
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, going.step)
    token = sampling.draw(going.logits, going.seen, now)
    token = jnp.where(going.done, -1, token)
    ends = jnp.isin(token, jnp.array(stop, jnp.int32)) if stop else jnp.zeros_like(going.done)
    logits, cache = step(going.cache, token)
    seen = going.seen.at[jnp.arange(len(token)), token].set(True, mode="drop") \
        if sampling.repetition_penalty is not None else going.seen
    return Going(going.step + 1, cache, logits, seen, going.done | ends), token


def generate(step: Step, going: Going, keys: Array, *, tokens: int,
             sampling: Sampling = Sampling(), stop: tuple[int, ...] = ()) -> tuple[Going, Array]:
    """(what is carried on, tokens [B, N]) of N steps; -1 after a token that stops a row. It ends
    early when all rows have stopped.

    Args:
      step: of the model.
      going: of `begin`, or of an earlier call, from which it goes on.
      keys: one for each row, [B].
      tokens: N.
      sampling: how a token is drawn.
      stop: tokens that end a row; such a token is its last.
    """
    size = going.logits.shape[0]

    def more(carry: Any) -> Array:
        i, going, _ = carry
        return (i < tokens) & ~going.done.all()

    def one(carry: Any) -> Any:
        i, going, out = carry
        going, token = advance(step, going, keys, sampling, stop)
        return i + 1, going, out.at[:, i].set(token)

    out = jnp.full((size, tokens), -1, jnp.int32)
    _, going, out = lax.while_loop(more, one, (jnp.int32(0), going, out))
    return going, out


# Beam search.


class Beams(NamedTuple):
    """The hypotheses of B rows with K beams each.

    Attributes:
      step: tokens of those that live.
      cache: of the model, of B K rows.
      logits: of the next token, [B K, V].
      tokens: of those that live, [B, K, N].
      score: the logarithms of their probabilities, [B, K]; NEVER where there is none.
      finished: tokens of those that have ended, [B, K, N], the best first.
      finished_score: their logarithms, after the length penalty, [B, K].
    """

    step: Array
    cache: Any
    logits: Array
    tokens: Array
    score: Array
    finished: Array
    finished_score: Array


def penalty(length: Any, alpha: float) -> Any:
    """((5 + length) / 6) ^ alpha: Wu et al. (2016), https://arxiv.org/abs/1609.08144, equation 14,
    without coverage."""
    return ((5. + length) / 6.) ** alpha


def beam_search(step: Step, cache: Any, logits: Array, *, beams: int, tokens: int,
                stop: tuple[int, ...], alpha: Any = 0., best: int = 1,
                axes: Any = 0) -> tuple[Array, Array]:
    """The best sequences that a beam of K finds: (tokens [B, best, N], scores [B, best]).

    A hypothesis ends by a token of `stop`, or by being N tokens long; it then leaves the beam,
    which so becomes narrower (Sutskever et al. 2014, section 3.2). Its score is log p /
    penalty(length). The search of a row ends when nothing that lives can come to a better score
    than the worst of the `best` ones that have ended: the result is as if it had gone on. With as
    many beams as there are sequences it is exhaustive; with one it is greedy.

    Args:
      step: of the model.
      cache: after the prompt, of B rows.
      logits: of the first token, [B, V].
      beams: K.
      tokens: N, the most that a sequence has.
      stop: tokens that end a sequence.
      alpha: of the length penalty; not negative. 0 for none.
      best: how many sequences of each row, at most K.
      axes: of each leaf of the cache, that which counts rows: a pytree, or one for all.
    """
    size, vocabulary = logits.shape
    ends = jnp.zeros(vocabulary, bool).at[jnp.array(stop, jnp.int32)].set(True) if stop \
        else jnp.zeros(vocabulary, bool)

    def widened(x: Array, axis: int) -> Array:
        return jnp.repeat(x, beams, axis)

    cache, logits = mapped(widened, cache, axes), jnp.repeat(logits, beams, 0)
    score = jnp.where(jnp.arange(beams) == 0, 0., NEVER)  # At first all are alike: one counts.
    nothing = jnp.full((size, beams, tokens), -1, jnp.int32)
    state = Beams(jnp.int32(0), cache, logits, nothing, jnp.tile(score, (size, 1)), nothing,
                  jnp.full((size, beams), NEVER))

    def more(state: Beams) -> Array:
        """Whether something that lives may still come among the best ones."""
        bound = state.score.max(1) / penalty(tokens, alpha)  # logarithms are not positive
        living = state.score.max(1) > NEVER / 2
        return (state.step < tokens) & (living & (bound > state.finished_score[:, best - 1])).any()

    def one(state: Beams) -> Beams:
        log_p = jax.nn.log_softmax(state.logits.astype(jnp.float32)).reshape(size, beams, -1)
        total = (state.score[..., None] + log_p).reshape(size, -1)  # [B, K V]
        total = jnp.maximum(total, NEVER)
        score, choice = lax.top_k(total, beams)  # a beam wider than there are candidates is padded
        parent, token = choice // vocabulary, (choice % vocabulary).astype(jnp.int32)
        ended = (state.finished_score > NEVER / 2).sum(1)
        score = jnp.where(jnp.arange(beams) < beams - ended[:, None], score, NEVER)
        grown = jnp.take_along_axis(state.tokens, parent[..., None], 1)
        grown = grown.at[:, :, state.step].set(token)
        over = (ends[token] | (state.step + 1 == tokens)) & (score > NEVER / 2)
        last = jnp.where(over, score / penalty(state.step + 1, alpha), NEVER)
        # The best ones that have ended, of old and new.
        both = jnp.concatenate([state.finished_score, last], 1)
        finished_score, place = lax.top_k(both, beams)
        finished = jnp.take_along_axis(jnp.concatenate([state.finished, grown], 1),
                                       place[..., None], 1)
        score = jnp.where(over, NEVER, score)
        rows = (jnp.arange(size)[:, None] * beams + parent).reshape(-1)
        cache = mapped(lambda x, axis: jnp.take(x, rows, axis), state.cache, axes)
        logits, cache = step(cache, token.reshape(-1))
        return Beams(state.step + 1, cache, logits, grown, score, finished, finished_score)

    state = lax.while_loop(more, one, state)
    return state.finished[:, :best], state.finished_score[:, :best]


def mapped(function: Callable[[Array, int], Array], cache: Any, axes: Any) -> Any:
    """A function of each leaf of a cache and of its axis of rows."""
    if isinstance(axes, int):
        return jax.tree.map(lambda x: function(x, axes), cache)
    return jax.tree.map(function, cache, axes)


# Of a language model.


class Continues:
    """A language model's prompts and steps.

    Args:
      model: a Linen module called as model(tokens, train, cache), with `start(rows, length)`.
      variables: of it.
      size: how many tokens there are, where the model has room for more.
    """

    def __init__(self, model: Any, variables: Mapping[str, Any], size: int | None = None) -> None:
        self.model, self.variables, self.size = model, variables, size

    def prompted(self, prompt: Array, length: int) -> tuple[Array, Any]:
        """(logits [B, V], cache) after a prompt [B, P], whose rows are filled up with -1 at the end
        and not empty, with room for `length` tokens altogether."""
        cache = self.model.start(len(prompt), length)
        logits, cache = self.model.apply(self.variables, prompt, False, cache)
        last = jnp.maximum((prompt >= 0).sum(1) - 1, 0)
        return jnp.take_along_axis(logits, last[:, None, None], 1)[:, 0, :self.size], cache

    def step(self, cache: Any, token: Array) -> tuple[Array, Any]:
        """The next logits; a token of -1 changes nothing that counts."""
        logits, cache = self.model.apply(self.variables, token[:, None], False, cache)
        return logits[:, 0, :self.size], cache

    def axes(self, cache: Any) -> Any:
        """Of each leaf of the cache the axis that counts rows."""
        known = getattr(self.model, "row_axes", None)
        return jax.tree.map(lambda x: 0, cache) if known is None else known(cache)


def padded(rows: Sequence[np.ndarray], length: int | None = None) -> np.ndarray:
    """Rows of tokens as one array [B, P], filled up with -1 at the end."""
    size = max(map(len, rows)) if length is None else length
    out = np.full((len(rows), size), -1, np.int32)
    for i, row in enumerate(rows):
        out[i, :len(row)] = row
    return out
