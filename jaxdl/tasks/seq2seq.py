"""From one sequence to another: translation, and whatever else comes as pairs of texts."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Fraction, NonNegative, Size
from jaxdl.data.text import END
from jaxdl.data.tokenizers import Tokenizer, special_token
from jaxdl.decode import Sampling, beam_search, begin, generate
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, each
from jaxdl.pictures import Material, Picture, Texts, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState
from jaxdl.tasks.language import counted

Array = jax.Array
Score = Literal["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact"]
SHOWN = 50  # examples in the file that an evaluator writes
ANSWERED = 12  # in a report


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(LossTask):
    """Cross-entropy of a target's tokens, given a source and those before them.

    A batch has "source" [B, S], "tokens" and "next" [B, T], int32, and "mask" [B]; -1 is none. The
    means are over the target's tokens.

    Attributes:
      model: called as model(source, tokens, train), returns logits [B, T, vocabulary].
      label_smoothing: weight of the uniform distribution in the target, in training (Szegedy et al.
        2016, section 7); None for none.
    """

    model: nn.Module
    label_smoothing: Fraction | None = None

    target_fields: ClassVar[tuple[str, ...]] = ("next",)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        logits, mutable = self.apply(self.model, variables, batch["source"], batch["tokens"],
                                     key=key, train=train)
        return counted(logits, batch["next"], batch["mask"], mutable,
                       self.label_smoothing if train else None)

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Of the evaluated parameters: [B, T, vocabulary]."""
        return self.apply(self.model, self.variables(state), batch["source"], batch["tokens"],
                          key=state.key, train=False)[0]

    def initial_loss(self, batch: Batch) -> Array:
        """Of a model for which all tokens are equally likely."""
        return jnp.log(float(self.model.vocabulary))  # type: ignore[attr-defined]

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Some answers to the test data."""
        source: Any = material.source(material.split)
        model = Answers(self.model, self.variables(state), source.tokenizer)
        ids = some(source, ANSWERED)
        answer = jax.jit(lambda asked: decoded(model, asked, asked.shape[1], None, 0.))
        rows = answer(jnp.asarray(source.read(ids)["source"]))
        material.advance(len(ids))
        yield Texts(title="What it answers", captions=[source.texts[i][0] for i in ids], texts=[
            [(f"expected: {source.texts[i][1]}\nanswered: ", 0.),
             (source.tokenizer.decode(row), 0.15)]
            for i, row in zip(ids, np.asarray(rows), strict=True)], note="greedy decoding")

    def generator(self, variables: Any, tokenizer: Tokenizer) -> "Answers":
        """What makes a target of a source."""
        return Answers(self.model, variables, tokenizer)


class Answers:
    """The target of a source, which is the prompt.

    Args:
      model: of the task.
      variables: of the model.
      tokenizer: of the run.
    """

    def __init__(self, model: Any, variables: Any, tokenizer: Tokenizer) -> None:
        self.model, self.variables, self.tokenizer = model, variables, tokenizer
        self.limit, self.apart = getattr(model, "block", None), True
        self.end = special_token(tokenizer, END)
        self.stop = (self.end,)

    def encode(self, text: str) -> np.ndarray:
        tokens = self.tokenizer.encode(text)
        if not len(tokens):
            raise UserError("expected at least one word.")
        if self.limit is not None and len(tokens) > self.limit:
            raise UserError(f"it has {len(tokens)} tokens, more than the {self.limit} that the "
                            "network sees at once.")
        return tokens

    def decode(self, prompt: str, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens)

    def prompted(self, prompt: Array, length: int) -> tuple[Array, Any]:
        """(logits [B, V] of the first token of the target, cache) of sources [B, S]."""
        first = jnp.full((len(prompt), 1), self.end)
        logits, cache = self.model.apply(self.variables, prompt, first, False,
                                         self.model.start(len(prompt), length))
        return logits[:, 0, :self.tokenizer.size], cache

    def step(self, cache: Any, token: Array) -> tuple[Array, Any]:
        logits, cache = self.model.apply(self.variables, None, token[:, None], False, cache)
        return logits[:, 0, :self.tokenizer.size], cache

    def axes(self, cache: Any) -> Any:
        known = getattr(self.model, "row_axes", None)
        return 0 if known is None else known(cache)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What is generated for a split, against its targets. Writes some examples into the run, as
    translations_NAME.txt.

    Attributes:
      split: of pairs.
      every: steps between two evaluations; the last step is always evaluated.
      tokens: of an answer, at most.
      beams: of the search; None takes the likeliest token each time.
      length_penalty: of the search.
      scores: "bleu" (Papineni et al. 2002) and "chrf" (Popovic 2015) are sacreBLEU's with its
        standard options (13a tokens, case counts), from 0 to 100; "rouge1", "rouge2" and "rougeL"
        (Lin 2004) are F scores of Google's rouge-score, with stems, from 0 to 100, for English: it
        knows the letters a to z alone; "exact" is the share of targets that are met to the letter.
        BLEU counts groups of up to four words: of answers that are shorter it is 0, however right
        they are.
      batch_size: None for the experiment's.
    """

    split: str = "test"
    every: Size = 1_000
    tokens: Size = 64
    beams: Size | None = None
    length_penalty: NonNegative = 0.6
    scores: tuple[Score, ...] = ("bleu", "chrf", "exact")
    batch_size: Size | None = None

    def check(self, experiment: Any) -> None:
        """Raises a UserError for a library that a score needs, and for longer answers than the
        network can make."""
        limit = getattr(getattr(experiment.task, "model", None), "block", None)
        if limit is not None and self.tokens > limit:
            raise UserError(f"Translation: tokens={self.tokens}: an answer has at most "
                            f"task.model.block={limit}.")
        for score in self.scores:
            SCORES[score]([""], [""])

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        source: Any = context.source(self.split)

        def answered(task: Any, state: TrainState, batch: Batch) -> Array:
            """Tokens of the answers, [B, N]."""
            model = Answers(task.model, task.variables(state), source.tokenizer)
            return decoded(model, batch["source"], self.tokens, self.beams, self.length_penalty)

        rows = each(answered, task, state, context, source, self.split,
                    self.batch_size or context.batch_size)
        found = np.concatenate([np.asarray(x) for x in rows])[:source.size]
        texts = [source.tokenizer.decode(row) for row in found]
        asked, wanted = zip(*source.texts, strict=True)
        if context.folder is not None:
            lines = [f"{a}\n  expected: {b}\n  answered: {c}\n"
                     for a, b, c in zip(asked, wanted, texts, strict=True)]
            (context.folder / f"translations_{context.name}.txt").write_text(
                f"step {context.step:,}\n\n" + "\n".join(lines[:SHOWN]), encoding="utf-8")
        return {name: SCORES[name](texts, wanted) for name in self.scores}


def decoded(model: Answers, source: Array, tokens: int, beams: int | None, alpha: Any) -> Array:
    """The answers to sources [B, S], as tokens [B, N]: greedy, or the best of a beam search."""
    logits, cache = model.prompted(source, tokens)
    if beams is None:
        keys = jax.vmap(jax.random.key)(jnp.zeros(len(source), jnp.uint32))
        return generate(model.step, begin(logits, cache, source), keys, tokens=tokens,
                        sampling=Sampling(temperature=None), stop=model.stop)[1]
    return beam_search(model.step, cache, logits, beams=beams, tokens=tokens, stop=model.stop,
                       alpha=alpha, axes=model.axes(cache))[0][:, 0]


def bleu(texts: Sequence[str], wanted: Sequence[str]) -> float:
    """sacreBLEU's corpus BLEU, from 0 to 100."""
    return _sacrebleu().corpus_bleu(list(texts), [list(wanted)]).score


def chrf(texts: Sequence[str], wanted: Sequence[str]) -> float:
    """sacreBLEU's corpus chrF, from 0 to 100."""
    return _sacrebleu().corpus_chrf(list(texts), [list(wanted)]).score


def exact(texts: Sequence[str], wanted: Sequence[str]) -> float:
    """The share of texts that are as wanted."""
    return float(np.mean([a == b for a, b in zip(texts, wanted, strict=True)]))


def rouge(kind: str, texts: Sequence[str], wanted: Sequence[str]) -> float:
    """The mean over texts of an F score of rouge-score, such as "rouge1", from 0 to 100."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError("ROUGE takes the library rouge-score: pip install "
                        "'jaxdl[text]'.") from error
    scorer = RougeScorer([kind], use_stemmer=True)
    return 100 * float(np.mean([scorer.score(b, a)[kind].fmeasure
                                for a, b in zip(texts, wanted, strict=True)]))


SCORES = {"bleu": bleu, "chrf": chrf, "exact": exact,
          **{kind: functools.partial(rouge, kind) for kind in ("rouge1", "rouge2", "rougeL")}}


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise UserError("BLEU and chrF take the library sacrebleu: pip install "
                        "'jaxdl[text]'.") from error
    return sacrebleu
