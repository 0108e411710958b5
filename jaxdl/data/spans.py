"""Questions whose answer stands in a text: which words of it are the answer?

A row is the question, "<end>", and the text or a part of it. Batches have "tokens" int32 [B, T], -1
for none, at the end of a row; "kind" int32 [B, T], 1 where the text is; and "start" and "end" bool
[B, T]: where an answer begins, and the place of its last token.
"""

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxdl.config import Fraction, Size
from jaxdl.data.corpora import KJV, names, verses
from jaxdl.data.debian import package
from jaxdl.data.labelled_text import divided
from jaxdl.data.pairs import tidy
from jaxdl.data.source import Arrays, Source
from jaxdl.data.text import END, Texts, check_whole, read_text, text_files
from jaxdl.data.tokenizers import NONE, Kind, Words, places_all
from jaxdl.errors import UserError, shown


class Question(NamedTuple):
    """A question about a text.

    Attributes:
      question: what is asked.
      text: where the answer stands.
      answers: each of which is right.
      starts: where in the text answers stand, as (the first character, how many); not all of them
        need be named, but those that are not are taken for wrong in training.
      group: questions of one group stay together when a split is drawn: those on one text, say.
    """

    question: str
    text: str
    answers: tuple[str, ...]
    starts: tuple[tuple[int, int], ...]
    group: int


@dataclass(frozen=True, kw_only=True)
class SpanRows(Arrays):
    """Rows, and what an evaluator needs to put them together again.

    Attributes:
      questions: those asked.
      question_of: the question of each row, an index, [N].
      begins: the character of the text where each token of a row begins, [N, T].
      ends: and where it ends.
    """

    questions: Sequence[Question]
    question_of: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SpanTexts(Texts):
    """What data sets of such questions share. A kind of it defines `prepare` and `asked`.

    A text that does not fit into a row makes several, each beginning `stride` tokens after the one
    before (Devlin et al. 2019, their code). Those without an answer are not trained on; in
    evaluation the best answer of all rows of a question counts.

    Attributes:
      block: tokens of a row, T.
      longest: tokens of a question, of which no more are read.
      stride: tokens from one row of a text to the next; where a row has room for fewer, as many as
        it has room for.
      test: share of the groups that is the split "test": drawn at random, but always the same.
    """

    tokenizer: Kind = Words(vocabulary=8_000, lower=True)
    block: Size = 384
    longest: Size = 64
    stride: Size = 128
    test: Fraction = 0.1

    special: ClassVar[tuple[str, ...]] = (END,)
    cut: ClassVar[tuple[str, ...]] = ("stand_in", "block", "longest", "stride")

    def asked(self) -> Mapping[str, Sequence[Question]]:
        """The questions of the splits "train" and "test", in an order that never changes."""
        raise TypeError(f"{type(self).__name__} must define asked().")

    @functools.cached_property
    def questions(self) -> Mapping[str, Sequence[Question]]:
        """Those of each split."""
        found = self.asked()
        for split, questions in found.items():
            if not questions:
                raise UserError(f"{type(self).__name__}: nothing is left for the split {split!r}, "
                                f"test={self.test:g}.")
        return found

    def read(self) -> dict[str, list[str]]:
        """Of each split the questions, and then the different texts."""
        return {split: [*(q.question for q in questions), *dict.fromkeys(q.text for q in questions)]
                for split, questions in self.questions.items()}

    def check(self, experiment: Any) -> None:
        super().check(experiment)
        if self.block <= self.longest + 1:
            raise UserError(f"{type(self).__name__}: block={self.block} leaves no room for a text "
                            f"after longest={self.longest} tokens of a question.")

    def open(self, split: str) -> Source:
        self.check_split(split)
        questions, tokenizer = self.questions[split], self.content.tokenizer
        tokens = self.content.tokens(split)
        different = self.content.texts[split][len(questions):]
        texts = dict(zip(different, zip(tokens[len(questions):], places_all(tokenizer, different),
                                        strict=True), strict=True))
        end = np.array([tokenizer.special.index(END)])
        rows, asked = [], []
        for number, (question, given) in enumerate(zip(questions, tokens, strict=False)):
            head = np.concatenate([given[:self.longest], end])
            for row in windows(head, *texts[question.text], question.starts, self.block,
                               self.stride):
                if split != "train" or row["start"].any():
                    rows.append(row)
                    asked.append(number)
        if not asked:
            raise UserError(f"{type(self).__name__}: no answer of the split {split!r} stands in "
                            f"its text, as it fits into block={self.block}.")
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        begins, ends = stacked.pop("begins"), stacked.pop("ends")
        return SpanRows(arrays=stacked, questions=questions, question_of=np.array(asked, np.int32),
                        begins=begins, ends=ends)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        for questions in self.questions.values():
            digest.update(repr([(q.answers, q.starts) for q in questions]).encode())
        return digest.hexdigest()[:16]


def windows(head: np.ndarray, text: np.ndarray, places: np.ndarray,
            answers: Sequence[tuple[int, int]], block: int,
            stride: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a question and its text. An answer is marked in those that have the whole of it.

    Args:
      head: tokens of the question and what ends it.
      text: tokens of the text, [N].
      places: where each of them begins and ends in the text, [N, 2].
      answers: (first character, how many) of each.
      block: tokens of a row.
      stride: tokens from one row to the next.
    """
    spans = []
    for begin, count in answers:
        inside = np.flatnonzero((places[:, 1] > begin) & (places[:, 0] < begin + count))
        if len(inside):
            spans.append((inside[0], inside[-1]))
    room = block - len(head)
    stride = min(stride, room)  # nothing is left out
    for at in range(0, max(len(text) - room, 0) + stride, stride):
        part = text[at:at + room]
        there = slice(len(head), len(head) + len(part))
        row = {"tokens": np.full(block, NONE, np.int32),
               **{name: np.zeros(block, np.int32) for name in ("kind", "begins", "ends")},
               **{name: np.zeros(block, bool) for name in ("start", "end")}}
        row["tokens"][:len(head)], row["tokens"][there], row["kind"][there] = head, part, 1
        row["begins"][there], row["ends"][there] = places[at:at + room].T
        for first, last in spans:
            if at <= first and last < at + len(part):
                row["start"][first - at + len(head)] = row["end"][last - at + len(head)] = True
        yield row


@dataclass(frozen=True, kw_only=True)
class SquadFile(SpanTexts):
    """A file of the form of SQuAD 1.1 (Rajpurkar et al. 2016), JSON; yours may be in it too.

    Its questions without an answer, which SQuAD 2.0 has, are left out.

    Attributes:
      path: of the file that is trained on.
      test_path: of the one that is the split "test"; None: a share of the articles of `path`.
    """

    path: str
    test_path: str | None = None

    def prepare(self) -> None:
        for path in filter(None, (self.path, self.test_path)):
            if text_files(path) != [Path(path).expanduser()]:
                raise UserError(f"data: path={shown(path)}: a folder, expected a JSON file.")

    def asked(self) -> Mapping[str, Sequence[Question]]:
        found = squad(Path(self.path).expanduser())
        if self.test_path is not None:
            return {"train": found, "test": squad(Path(self.test_path).expanduser())}
        train, test = divided(found, self.test)
        return {"train": train, "test": test}


def squad(path: Path) -> list[Question]:
    """The questions of a file of SQuAD's form that have an answer; a group is an article."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, but {error}.") from error
    found = []
    try:
        for group, article in enumerate(content["data"]):
            for paragraph in article["paragraphs"]:
                text = str(paragraph["context"])
                check_whole(text, f"{path}: a context")
                for asked in paragraph["qas"]:
                    answers = [(str(a["text"]), int(a["answer_start"])) for a in asked["answers"]]
                    if not isinstance(asked["question"], str):
                        raise TypeError(f"a question is {asked['question']!r}")
                    check_whole(asked["question"], f"{path}: a question")
                    for answer, start in answers:
                        if not answer or start < 0 or text[start:start + len(answer)] != answer:
                            name = shown(str(asked.get("id", asked["question"])))
                            raise UserError(
                                f"{path}: question {name}: "
                                f"{shown(answer)!r} does not stand at answer_start={start} of its "
                                "context.")
                    if answers:
                        found.append(Question(
                            str(asked["question"]), text, tuple(a for a, _ in answers),
                            tuple((start, len(a)) for a, start in answers), group))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not of SQuAD's form: {type(error).__name__} "
                        f"{shown(str(error))}.") from error
    return found


# Questions that are made of a real text.

BEFORE, BLANK, GROUP = 5, "XXXXX", 100  # verses; as in the Children's Book Test; verses


@dataclass(frozen=True, kw_only=True)
class BibleNamesAsked(SpanTexts):
    """Whose name is missing? A verse of the King James Bible without one of its names, which stands
    in the five verses before: questions as in the Children's Book Test (Hill et al. 2016, section
    2), but the answer is a place of the text.

    The text must name three at least. Wherever the name stands there is an answer. Groups are 100
    verses that follow each other, and no question goes beyond its own: 8,420 to train, 940 to
    test.
    The name that the text has most often, of those that the question has not, is right for two in
    five of them: `most_frequent`.
    """

    block: Size = 256

    def prepare(self) -> None:
        package(*KJV)

    def asked(self) -> Mapping[str, Sequence[Question]]:
        every = [tidy(verse).replace("¶ ", "") for verse in verses(package(*KJV)) if verse]
        known = set(names(" ".join(every)))
        found = []
        for i in range(len(every)):
            if i % GROUP < BEFORE:
                continue
            text = " ".join(every[i - BEFORE:i])
            there = Counter(word for word in re.findall("[A-Za-z]+", text) if word in known)
            if len(there) < 3:
                continue
            for name in dict.fromkeys(re.findall("[A-Za-z]+", every[i])):
                if name in there:
                    at = re.compile(rf"\b{name}\b")
                    found.append(Question(
                        at.sub(BLANK, every[i]), text, (name,),
                        tuple((m.start(), len(name)) for m in at.finditer(text)), i // GROUP))
        train, test = divided(found, self.test)
        return {"train": train, "test": test}


def most_frequent(question: Question, known: set[str]) -> str:
    """The known name that the text has most often, of those that the question has not."""
    said = set(re.findall("[A-Za-z]+", question.question))
    there = Counter(word for word in re.findall("[A-Za-z]+", question.text)
                    if word in known and word not in said)
    return max(there, key=lambda name: there[name], default="")
