"""Language models: the probability of each token, given those before it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.data.text import END
from jaxdl.data.tokenizers import Tokenizer, pieces
from jaxdl.decode import Continues, Sampling
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, Evaluate
from jaxdl.pictures import Material, Picture, Texts, read, some
from jaxdl.prompt import Compiled, chunks
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array
SAMPLES, LENGTH = 4, 300  # of a report: texts, and tokens of each
SHORT_SAMPLES = 20  # where texts end by themselves
SURPRISE = 6.  # nats of a token that is shaded wholly


@dataclass(frozen=True, kw_only=True)
class LanguageModel(LossTask):
    """Cross-entropy of the next token, in nats, and how often it is the likeliest one.

    A batch has "tokens" and "next", int32 [B, T], "mask" [B], and perhaps "segment" [B, T], the
    document of each token. A next token of -1 does not count; the means are over all tokens that
    do, not over rows.

    Attributes:
      model: called as model(tokens, train, segment=...), returns logits [B, T, vocabulary].
    """

    model: nn.Module

    causal: ClassVar[bool] = True
    target_fields: ClassVar[tuple[str, ...]] = ("next",)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        logits, mutable = self.apply(self.model, variables, batch["tokens"], key=key, train=train,
                                     **named_inputs(batch))
        return counted(logits, batch["next"], batch["mask"], mutable)

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Of the evaluated parameters: [B, T, vocabulary]."""
        return self.apply(self.model, self.variables(state), batch["tokens"], key=state.key,
                          train=False, **named_inputs(batch))[0]

    def generator(self, variables: Any, tokenizer: Tokenizer) -> "GoesOn":
        """What goes on with a text."""
        return GoesOn(self.model, variables, tokenizer)

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """What it writes, and what of the test text it did not expect."""
        tokenizer = material.data.content.tokenizer
        generator = self.generator(self.variables(state), tokenizer)
        source = material.source(material.split)
        ids = some(source, SHORT_SAMPLES if generator.stop else SAMPLES)
        rows = [np.asarray(x)[np.asarray(x) >= 0] for x in source.read(ids)["tokens"]]
        # Where texts end, each is begun anew; a stream is gone on with.
        prompts = [np.array(generator.stop, np.int32) if generator.stop else row[:len(row) // 2]
                   for row in rows]
        keys = jax.random.split(jax.random.key(material.seed), len(prompts))
        compiled = Compiled(generator, Sampling(temperature=0.8))
        made: list[list[np.ndarray]] = [[] for _ in prompts]
        for lot in chunks(compiled, prompts, keys, LENGTH):
            for parts, row in zip(made, lot, strict=True):
                parts.append(row[row >= 0])
            material.advance(lot.size)
        decode = tokenizer.decode
        given = "" if generator.stop else "; shaded: the prompt, a part of the test text"
        yield Texts(title="What it writes", note=f"temperature 0.8{given}", texts=[
            [(decode(prompt), 0.15), (decode(np.concatenate(parts)), 0.)]
            for prompt, parts in zip(prompts, made, strict=True)])
        measured = jax.jit(lambda batch: -jnp.take_along_axis(
            jax.nn.log_softmax(self.logits(state, batch)),
            jnp.maximum(batch["next"], 0)[..., None], -1)[..., 0])
        shaded = []
        for batch in read(source, ids, material.batch_size):
            for row, losses in zip(np.asarray(batch["next"]), np.asarray(measured(batch)),
                                   strict=True):
                shaded.append([(text, float(loss) / SURPRISE) for text, loss in zip(
                    pieces(tokenizer, row[row >= 0]), losses[row >= 0], strict=True)])
        yield Texts(title="What surprises it", texts=shaded[:len(ids)], note="the test text; the "
                    "darker the ground of a token, the less likely it was, up to "
                    f"{SURPRISE:g} nats")

    def initial_loss(self, batch: Batch) -> Array:
        """Of a model for which all tokens are equally likely."""
        return jnp.log(float(self.model.vocabulary))  # type: ignore[attr-defined]


class GoesOn(Continues):
    """A language model goes on with a text. Where it was trained on many texts, each between two
    "<end>", a prompt begins one, and such a token ends it.

    Args:
      model: of the task.
      variables: of the model.
      tokenizer: of the run.
    """

    def __init__(self, model: Any, variables: Any, tokenizer: Tokenizer) -> None:
        super().__init__(model, variables, tokenizer.size)
        self.tokenizer, self.limit = tokenizer, getattr(model, "block", None)
        self.apart = False
        self.stop = tuple(i for i, name in enumerate(tokenizer.special) if name == END)

    def encode(self, text: str) -> np.ndarray:
        tokens = np.concatenate([np.array(self.stop, np.int32), self.tokenizer.encode(text)])
        if not len(tokens):
            raise UserError("expected at least one character to go on from.")
        return tokens

    def decode(self, prompt: str, tokens: np.ndarray) -> str:
        more = self.tokenizer.decode(tokens)
        apart = more and prompt[-1:].strip() and not self.tokenizer.exact
        return f"{prompt} {more}" if apart else prompt + more


def named_inputs(batch: Batch) -> dict[str, Any]:
    """What a model is given beside the tokens, where a batch has it."""
    return {"segment": batch["segment"]} if "segment" in batch else {}


def counted(logits: Array, target: Array, mask: Array, mutable: Any,
            smoothing: Any = None) -> tuple[Mean, Aux]:
    """(mean cross-entropy, accuracy beside it) over the tokens that count: target [B, T] is not
    negative, and mask [B] is set.

    Args:
      logits: [B, T, V].
      target: [B, T].
      mask: [B].
      mutable: of the model.
      smoothing: weight of the uniform distribution in the target; None for none.
    """
    kept = (target >= 0) & (mask > 0)[:, None]
    index = jnp.where(kept, target, 0)
    logits = jnp.where(kept[..., None], logits, 0)  # NaN of a masked example reaches no gradient
    vocabulary = logits.shape[-1]
    own = jnp.take_along_axis(logits, jnp.minimum(index, vocabulary - 1)[..., None], -1)[..., 0]
    total = jax.nn.logsumexp(logits, -1)
    losses = total - own
    if smoothing is not None:
        losses = (1 - smoothing) * losses + smoothing * (total - logits.mean(-1))
    # A token that the model does not have has no loss: NaN, which ends the run.
    losses = jnp.where(index < vocabulary, losses, jnp.nan)
    weights = kept * mask[:, None]
    return Mean.of(losses, weights), Aux(mutable=mutable, metrics={
        "accuracy": Mean.of(logits.argmax(-1) == index, weights)})


@dataclass(frozen=True, kw_only=True)
class Perplexity(Evaluate):
    """The task's metrics over a split, and what they mean for its text.

    `perplexity` is exp(loss). `bits_per_character` is the code length of the whole split, total /
    log 2, divided by the characters that it stands for: it compares models with different
    tokenizers. A split whose source does not tell `characters` has none, nor has one whose
    tokenizer does not give all of a text back, or a task that is not asked of every token.
    """

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        found = dict(super().finish(sums, context))
        found["perplexity"] = math.exp(min(found["loss"], 700.))
        source: Any = context.source(self.split)
        characters = getattr(source, "characters", None)
        if characters and int(sums["loss"].count) == len(source.stored) - 1:
            found["bits_per_character"] = float(sums["loss"].total) / math.log(2) / characters
        return found
