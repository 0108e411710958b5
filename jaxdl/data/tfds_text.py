"""Texts of TensorFlow Datasets (TFDS), without TensorFlow: see `data.tfds`."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxdl.data import tfds
from jaxdl.data.labelled_text import Example, LabelledTexts
from jaxdl.data.pairs import Pairs
from jaxdl.data.spans import Question, SpanTexts
from jaxdl.data.text import LongText
from jaxdl.errors import UserError, shown


@dataclass(frozen=True, kw_only=True)
class TfdsText(LongText):
    """A data set of texts, such as "tiny_shakespeare", one after another with an empty line between
    two. All of it is held in memory, as text and as tokens.

    Attributes:
      name: as in the catalogue: "NAME", "NAME/CONFIG" or "NAME:VERSION".
      directory: where TFDS keeps its data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      text: name of the feature that holds the text.
      train_split: what of TFDS is trained on, such as "train[:10%]".
      test_split: what of it the split "test" is; None: the end of the text, as `train` says.
    """

    name: str
    directory: str | None = None
    text: str = "text"
    train_split: str = "train"
    test_split: str | None = "test"

    def prepare(self) -> None:
        tfds.there(self.name, self.directory)

    def whole(self) -> str:
        return self._joined(self.train_split)

    def read(self) -> dict[str, list[str]]:
        if self.test_split is None:
            return super().read()
        return {"train": [self.whole()], "test": [self._joined(self.test_split)]}

    def _joined(self, split: str) -> str:
        found = tfds.texts(tfds.there(self.name, self.directory), split, {"text": self.text})
        return "\n\n".join(str(example["text"]) for example in found)


@dataclass(frozen=True, kw_only=True)
class TfdsLabelledTexts(LabelledTexts):
    """A data set of texts with a label each, such as "imdb_reviews" or "ag_news_subset".

    Attributes:
      name: as in the catalogue: "NAME", "NAME/CONFIG" or "NAME:VERSION".
      directory: where TFDS keeps its data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      labels: names of the classes; () takes those of TFDS, which `predict` asks for then, too.
      text: name of the feature that holds the text.
      label: name of the feature that holds the class.
      train_split: what of TFDS is trained on.
      test_split: what of it the split "test" is.
    """

    name: str
    directory: str | None = None
    labels: tuple[str, ...] = ()
    text: str = "text"
    label: str = "label"
    train_split: str = "train"
    test_split: str = "test"

    @functools.cached_property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.labels:
            return self.labels
        file = tfds.there(self.name, self.directory) / f"{self.label}.labels.txt"
        return tuple(file.read_text().splitlines()) if file.exists() else ()

    def prepare(self) -> None:
        tfds.there(self.name, self.directory)

    def labelled(self) -> Mapping[str, Sequence[Example]]:
        path, found = tfds.there(self.name, self.directory), {}
        for split, theirs in (("train", self.train_split), ("test", self.test_split)):
            examples = tfds.texts(path, theirs, {"text": self.text, "label": self.label})
            found[split] = [Example(str(e["text"]), int(e["label"]), i)
                            for i, e in enumerate(examples)]
            for i, example in enumerate(found[split]):
                if not 0 <= example.label < len(self.names):
                    raise UserError(f"TfdsLabelledTexts: example {i} of the split {theirs!r} has "
                                    f"the label {example.label}, and {len(self.names)} are named.")
        return found


@dataclass(frozen=True, kw_only=True)
class TfdsPairs(Pairs):
    """A data set of pairs, such as "ted_hrlr_translate/pt_to_en" or "wmt16_translate/de-en".

    Attributes:
      name: as in the catalogue: "NAME", "NAME/CONFIG" or "NAME:VERSION".
      directory: where TFDS keeps its data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      source: name of the feature that is given: a language.
      target: name of the one that is wanted.
      train_split: what of TFDS is trained on.
      test_split: what of it the split "test" is.
    """

    name: str
    directory: str | None = None
    source: str
    target: str
    train_split: str = "train"
    test_split: str = "test"

    def prepare(self) -> None:
        tfds.there(self.name, self.directory)

    def read(self) -> dict[str, list[str]]:
        path, found = tfds.there(self.name, self.directory), {}
        for split, theirs in (("train", self.train_split), ("test", self.test_split)):
            examples = tfds.texts(path, theirs, {"source": self.source, "target": self.target})
            found[split] = [str(e[side]) for side in ("source", "target") for e in examples]
        return found


@dataclass(frozen=True, kw_only=True)
class TfdsQuestions(SpanTexts):
    """A data set of SQuAD's form, such as "squad/v1.1"; questions without an answer are left out.

    Attributes:
      name: as in the catalogue: "NAME", "NAME/CONFIG" or "NAME:VERSION".
      directory: where TFDS keeps its data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      train_split: what of TFDS is trained on.
      test_split: what of it the split "test" is.
    """

    name: str = "squad/v1.1"
    directory: str | None = None
    train_split: str = "train"
    test_split: str = "validation"

    def prepare(self) -> None:
        tfds.there(self.name, self.directory)

    def asked(self) -> Mapping[str, Sequence[Question]]:
        path = tfds.there(self.name, self.directory)
        return {split: [question for i, example in enumerate(tfds.texts(
                    path, theirs, {n: n for n in ("question", "context", "answers")}))
                        if (question := _question(theirs, i, example))]
                for split, theirs in (("train", self.train_split), ("test", self.test_split))}


def _question(split: str, i: int, example: Mapping[str, Any]) -> Question | None:
    """A record of SQuAD, if it has an answer."""
    text, answers = str(example["context"]), example["answers"]
    found = [(str(answer), int(start)) for answer, start in zip(
        answers["text"], answers["answer_start"], strict=True)]
    for answer, start in found:
        if text[start:start + len(answer)] != answer:
            raise UserError(f"TfdsQuestions: example {i} of the split {split!r}: {shown(answer)!r} "
                            f"does not stand at answer_start={start} of its context.")
    return Question(str(example["question"]), text, tuple(a for a, _ in found),
                    tuple((start, len(a)) for a, start in found), i) if found else None
