"""Question answering: which part of a text is the answer?"""

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.spans import SpanRows, windows
from jaxdl.data.text import END
from jaxdl.data.tokenizers import Tokenizer, places_all, special_token
from jaxdl.errors import UserError, shown
from jaxdl.evaluate import Context, each
from jaxdl.pictures import Material, Picture, Texts, read, some
from jaxdl.prompt import Teller, Told, encoded
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array
SHOWN = 50  # answers in the file that an evaluator writes
ANSWERED = 8  # in a report
LONGEST = 30  # tokens of an answer
NEVER = -1e9  # logit of a place where no answer can be


@dataclass(frozen=True, kw_only=True)
class SpanQuestionAnswering(LossTask):
    """The log-likelihood of where an answer begins and of where it ends: Devlin et al. (2019),
    section 4.2; where several places are right, that of their sum (Kadlec et al. 2016, section 3).

    A batch has "tokens", "kind" int32 [B, T], "start", "end" bool [B, T] and "mask" [B], as those
    of `data.spans`. The loss is the mean of the two, over rows with an answer.

    Attributes:
      model: called as model(tokens, train, kind=...), returns two logits for each token, [B, T, 2].
    """

    model: nn.Module

    target_fields: ClassVar[tuple[str, ...]] = ("start", "end")

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        logits, mutable = self._logits(variables, batch, key, train)
        right = jnp.stack([batch["start"], batch["end"]], -1)  # [B, T, 2]
        kept = (batch["mask"] > 0) & right.any(1).all(-1)
        # NaN of a masked row reaches no gradient.
        logits = jnp.where(kept[:, None, None], logits, 0)
        right = jnp.where(kept[:, None, None], right, True)
        losses = (jax.nn.logsumexp(logits, 1)
                  - jax.nn.logsumexp(jnp.where(right, logits, NEVER), 1)).mean(-1)  # [B]
        weights = kept * batch["mask"]
        hits = jnp.take_along_axis(right, logits.argmax(1)[:, None], 1)[:, 0]  # [B, 2]
        return Mean.of(losses, weights), Aux(mutable=mutable, metrics={
            "start_accuracy": Mean.of(hits[:, 0], weights),
            "end_accuracy": Mean.of(hits[:, 1], weights)})

    def initial_loss(self, batch: Batch) -> Array:
        """Of a model for which all tokens of the text are equally likely."""
        right = jnp.stack([batch["start"], batch["end"]], -1)
        inside = ((batch["kind"] == 1) & (batch["tokens"] >= 0)).sum(1)
        losses = (jnp.log(inside)[:, None] - jnp.log(right.sum(1))).mean(-1)
        return Mean.of(losses, batch["mask"] * right.any(1).all(-1)).value()

    def _logits(self, variables: Any, batch: Batch, key: Array, train: bool) -> tuple[Array, Any]:
        logits, mutable = self.apply(self.model, variables, batch["tokens"], key=key, train=train,
                                     kind=batch["kind"])
        if logits.ndim != 3 or logits.shape[-1] != 2:
            raise UserError(f"SpanQuestionAnswering: logits of the shape {logits.shape}; expected "
                            "[B, T, 2], of a model with output=\"labels\" and classes=2.")
        inside = (batch["kind"] == 1) & (batch["tokens"] >= 0)
        return jnp.where(inside[..., None], logits, NEVER), mutable

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Of the evaluated parameters, for beginning and end: [B, T, 2]."""
        return self._logits(self.variables(state), batch, state.key, False)[0]

    def predict(self, state: TrainState, batch: Batch,
                tokens: int = LONGEST) -> tuple[Array, Array]:
        """(score [B], first and last token [B, 2]) of the best answer of each row, of so many
        tokens at most."""
        return best(self.logits(state, batch), tokens)

    def teller(self, variables: Any, tokenizer: Tokenizer, data: Any) -> Teller:
        """What answers questions: the last line of a text is the question, and the answer stands
        in those before it."""
        end = special_token(tokenizer, END)

        @jax.jit
        def found(tokens: Array, kind: Array) -> tuple[Array, Array, Array]:
            logits = self._logits(variables, {"tokens": tokens, "kind": kind}, jax.random.key(0),
                                  False)[0]
            score, places = best(logits, LONGEST)
            return score, score - jax.nn.logsumexp(logits, 1).sum(-1), places

        def tell(texts: Sequence[str], top: int) -> list[list[Told]]:
            told = []
            for prompt in texts:
                text, _, question = prompt.rstrip().rpartition("\n")
                if not text.strip() or not question.strip():
                    raise UserError(f"--prompt={shown(repr(prompt))}: expected a text and, in a "
                                    "line below it, a question.")
                head = np.append(encoded(tokenizer, question)[:data.longest], end)
                rows = list(windows(head, encoded(tokenizer, text),
                                    places_all(tokenizer, [text])[0], (), data.block, data.stride))
                scores, logs, places = map(np.asarray, found(*(
                    jnp.asarray(np.stack([row[name] for row in rows]))
                    for name in ("tokens", "kind"))))
                chosen = scores.argmax()
                row, (first, last) = rows[chosen], places[chosen]
                answer = text[row["begins"][first]:row["ends"][last]].strip()
                told.append([Told(question, [(answer, float(np.exp(logs[chosen])))])])
            return told

        return tell

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Texts, with what it takes for the answer."""
        source: Any = material.source(material.split)
        ids = some(source, ANSWERED)
        found = jax.jit(lambda batch: self.predict(state, batch)[1])
        answers = [a for batch in read(source, ids, material.batch_size)
                   for a in np.asarray(found(batch))][:len(ids)]
        texts, captions = [], []
        for i, (first, last) in zip(ids, answers, strict=True):
            question = source.questions[source.question_of[i]]
            begin, end = source.begins[i, first], source.ends[i, last]
            texts.append([(question.text[:begin], 0.), (question.text[begin:end], 0.5),
                          (question.text[end:], 0.)])
            captions.append(f"{question.question} Expected: {question.answers[0]}")
        yield Texts(title="What it answers", texts=texts, captions=captions,
                    note="shaded: what it takes for the answer")


def best(logits: Array, tokens: int) -> tuple[Array, Array]:
    """(score [B], first and last place [B, 2]) of the best start_i + end_j, i <= j < i + tokens.

    Args:
      logits: of beginning and end, [B, T, 2].
      tokens: of an answer, at most.
    """
    length = logits.shape[1]
    apart = jnp.arange(length) - jnp.arange(length)[:, None]  # j - i
    scores = logits[:, :, None, 0] + logits[:, None, :, 1]  # [B, T, T]
    scores = jnp.where((apart >= 0) & (apart < tokens), scores, -jnp.inf).reshape(len(logits), -1)
    place = scores.argmax(-1)
    return scores.max(-1), jnp.stack([place // length, place % length], -1)


@dataclass(frozen=True, kw_only=True)
class SpanAnswers:
    """Answers to the questions of a split, by SQuAD's measures (Rajpurkar et al. 2016, section
    6.1): `exact` is the share that equals a right one, `f1` the mean of its overlap in words with
    the right one that it is closest to; both but for case, punctuation and articles. Writes some
    answers into the run, as answers_NAME.txt.

    Attributes:
      split: of questions.
      every: steps between two evaluations; the last step is always evaluated.
      tokens: of an answer, at most.
      batch_size: None for the experiment's.
    """

    split: str = "test"
    every: Size = 1_000
    tokens: Size = LONGEST
    batch_size: Size | None = None

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        source: Any = context.source(self.split)
        if not isinstance(source, SpanRows):
            raise UserError(f"evals.{context.name}: SpanAnswers asks about texts; the split "
                            f"{self.split!r} has no questions.")
        def answered(task: Any, state: Any, batch: Batch) -> Any:
            return task.predict(state, batch, self.tokens)

        answers = each(answered, task, state, context, source, self.split,
                       self.batch_size or context.batch_size)
        scores = np.concatenate([a[0] for a in answers])[:source.size]
        places = np.concatenate([a[1] for a in answers])[:source.size]
        chosen: dict[int, int] = {}  # of each question the row that answers it
        for row, asked in enumerate(source.question_of.tolist()):
            if asked not in chosen or scores[row] > scores[chosen[asked]]:
                chosen[asked] = row
        found, lines = np.zeros((2, len(chosen))), []
        for number, (asked, row) in enumerate(chosen.items()):
            question, (first, last) = source.questions[asked], places[row]
            answer = question.text[source.begins[row, first]:source.ends[row, last]].strip()
            found[:, number] = [max(measure(answer, right) for right in question.answers)
                                for measure in (exact, f1)]
            if number < SHOWN:
                lines.append(f"question: {question.question}\nexpected: "
                             f"{' | '.join(question.answers)}\nanswered: {answer}\n")
        if context.folder is not None:
            (context.folder / f"answers_{context.name}.txt").write_text(
                f"step {context.step:,}\n\n" + "\n".join(lines), encoding="utf-8")
        return {"exact": float(found[0].mean()), "f1": float(found[1].mean())}


def words(answer: str) -> list[str]:
    """The words of an answer that count: lower case, without punctuation and articles."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact(answer: str, right: str) -> float:
    """1 where both have the same words in the same order, else 0."""
    return float(words(answer) == words(right))


def f1(answer: str, right: str) -> float:
    """2 p r / (p + r): p is the share of the answer's words that the right one has, r the share of
    the right one's that the answer has."""
    given, wanted = words(answer), words(right)
    both = sum((Counter(given) & Counter(wanted)).values())
    return 2 * both / (len(given) + len(wanted)) if both else float(given == wanted)
