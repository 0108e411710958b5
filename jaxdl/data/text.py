"""Text for language models: a long one cut into rows, or many short ones, a row each.

Batches have "tokens" int32 [B, T] and "next" [B, T], the token after each; -1 is none, in both.
"""

import functools
import hashlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxdl.config import Fraction, Size, leaves
from jaxdl.data.source import (
    Arrays,
    Batch,
    OnHost,
    Source,
    StandIn,
    epoch_index,
    permutation,
)
from jaxdl.data.tokenizers import FILE, NONE, Characters, Kind, Tokenizer, encode_all, saved
from jaxdl.errors import DataMissing, UserError, nearest, shown

IDS = 2 ** 31 - 1  # the largest id of an example, and so of a place in a stream
END = "<end>"  # special token around each of many texts


@dataclass(frozen=True, kw_only=True)
class Stream(OnHost):
    """A source of rows of one long sequence of tokens.

    In each epoch the rows lie elsewhere: they begin at a place between 0 and `block` that the seed
    and the epoch choose. Example i of that epoch is i + rows * place: an id says all that `read`
    needs to know. Evaluation goes through ids 0, 1, ..., so that every token but the first is
    predicted once, in the row that begins at a multiple of `block`.

    Attributes:
      stored: the tokens, [N]; a file mapped into memory will do.
      block: tokens of a row, T.
      starts: where documents begin in them, if there are several that shall not see each other;
        batches then have "segment" [B, T], the number of the document in its row.
      characters: how many characters of text the tokens but the first stand for. All these tokens
        are to be predicted; where others are, that says nothing of them.
    """

    stored: np.ndarray
    block: int
    starts: np.ndarray | None = None
    characters: int | None = None

    @property
    def size(self) -> int:
        return -(-(len(self.stored) - 1) // self.block)

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        rows = self.size
        epochs = np.arange(position, position + batch_size) // rows
        places = {int(e): place(seed, int(e), self.block) for e in np.unique(epochs)}
        shift = np.array([places[int(e)] for e in epochs], np.int64)
        return (epoch_index(seed, position, batch_size, rows) + rows * shift).astype(np.int32)

    def read(self, index: np.ndarray) -> Batch:
        index = np.asarray(index, np.int64)
        first = index % self.size * self.block + index // self.size
        at = first[..., None] + np.arange(self.block + 1)  # [B, T + 1]
        inside = at < len(self.stored)
        at = np.minimum(at, len(self.stored) - 1)
        tokens = np.where(inside, self.stored[at].astype(np.int32), NONE)
        # The first token after the end has none after it, so this row's last one has no next.
        batch = {"tokens": np.where(inside[..., 1:], tokens[..., :-1], NONE),
                 "next": tokens[..., 1:]}
        if self.starts is not None:
            number = np.searchsorted(self.starts, at[..., :-1], "right")
            batch["segment"] = (number - number[..., :1]).astype(np.int32)
        return batch


def place(seed: int, epoch: int, block: int) -> int:
    """Where the first row of an epoch begins: 0 ... block - 1."""
    key = np.array([seed + (1 << 33), epoch], np.uint64)
    return int(np.random.Philox(key=key).random_raw() % block)


class Content:
    """What was read of a data set, and its tokenizer. Data sets that differ only in how they cut
    it share it, for as long as one of them lives.

    Args:
      texts: those of each split.
      tokenizer: that knows them.
    """

    def __init__(self, texts: dict[str, list[str]], tokenizer: Tokenizer) -> None:
        self.texts, self.tokenizer = texts, tokenizer
        self._tokens: dict[str, list[np.ndarray]] = {}

    def tokens(self, split: str) -> list[np.ndarray]:
        """Of each text of a split, in the smallest type that holds them."""
        if split not in self._tokens:
            dtype = np.min_scalar_type(self.tokenizer.size)
            self._tokens[split] = [t.astype(dtype) for t in encode_all(self.tokenizer,
                                                                       self.texts[split])]
        return self._tokens[split]


_contents: weakref.WeakValueDictionary[tuple[Any, ...], Content] = weakref.WeakValueDictionary()


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What data sets of text share. A kind of data set defines `prepare` and `read`.

    Attributes:
      tokenizer: how text becomes tokens; it learns from the training split, characters from all.
      stand_in: what to train on where this data is absent.
    """

    tokenizer: Kind = Characters()
    stand_in: StandIn | None = None

    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    special: ClassVar[tuple[str, ...]] = ()
    cut: ClassVar[tuple[str, ...]] = ("stand_in",)  # fields that change nothing of what is read

    def prepare(self) -> None:
        """Makes sure that the data is on this machine; `DataMissing` if it cannot be fetched."""
        raise TypeError(f"{type(self).__name__} must define prepare().")

    def read(self) -> dict[str, list[str]]:
        """The texts of each split."""
        raise TypeError(f"{type(self).__name__} must define read().")

    @functools.cached_property
    def content(self) -> Content:
        """The texts and the tokenizer."""
        key = (type(self), *(getattr(self, f.name) for f in fields(self)
                             if f.name not in self.cut))
        found = _contents.get(key)
        if found is None:
            texts = self.read()
            every = [t for split in texts.values() for t in split]
            learned = every if isinstance(self.tokenizer, Characters) else texts["train"]
            _contents[key] = found = Content(texts, self.tokenizer.fit(learned, self.special))
        return found

    def check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"{type(self).__name__}: no split {split!r}, only "
                            f"{', '.join(map(repr, self.splits))}.{nearest(split, self.splits)}")

    def check(self, experiment: Any) -> None:
        """Raises a UserError for a model that does not have all tokens, with those that its task
        has beside."""
        more = getattr(experiment.task, "further_tokens", 0)
        for path, leaf in leaves(experiment.task, "task"):
            if path.endswith(".vocabulary") and leaf.value < self.vocabulary + more:
                beside = f", and the task {more} more" if more else ""
                raise UserError(f"{path}={leaf.value}: the tokenizer of {type(self).__name__} has "
                                f"{self.vocabulary} tokens{beside}; expected at least so many.")

    def check_classes(self, experiment: Any, labels: Sequence[str]) -> None:
        """Raises a UserError for a model that does not have a class for each label."""
        for path, leaf in leaves(experiment.task, "task"):
            if path.endswith(".classes") and leaf.value < len(labels):
                raise UserError(f"{path}={leaf.value}: {type(self).__name__} has {len(labels)} "
                                "labels; expected at least so many.")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.content.tokenizer.size

    def decode(self, tokens: Any) -> str:
        """The text of tokens [T]."""
        return self.content.tokenizer.decode(tokens)

    def files(self) -> dict[str, bytes]:
        """What a run keeps, to be asked without the data."""
        return {FILE: saved(self.content.tokenizer)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(saved(self.content.tokenizer))
        for split in self.splits:
            for text in self.content.texts[split]:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        digest.update(repr([(name, getattr(self, name)) for name in self.cut[1:]]).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class LongText(Texts):
    """One long text, cut into rows of `block` tokens: its beginning is trained on, its end is the
    split "test". A kind of it defines `prepare` and `whole`.

    Attributes:
      block: tokens of a row, T.
      train: share of the characters that is trained on, from the beginning.
      test_characters: how many of the rest the split "test" has; None for all.
    """

    block: Size = 256
    train: Fraction = 0.9
    test_characters: Size | None = None

    cut: ClassVar[tuple[str, ...]] = ("stand_in", "block", "test_characters")

    def whole(self) -> str:
        """The text."""
        raise TypeError(f"{type(self).__name__} must define whole().")

    def read(self) -> dict[str, list[str]]:
        text = self.whole()
        middle = int(self.train * len(text))
        return {"train": [text[:middle]], "test": [text[middle:]]}

    def check(self, experiment: Any) -> None:
        super().check(experiment)
        for split in self.splits:  # before there is a run
            self.open(split)

    def open(self, split: str) -> Source:
        self.check_split(split)
        text, stored = self.content.texts[split][0], self.content.tokens(split)[0]
        if split == "test" and self.test_characters is not None:
            text = text[:self.test_characters]
            stored = self.content.tokenizer.encode(text).astype(stored.dtype)
        if len(stored) < self.block + 1 and split == "train":
            raise UserError(f"{type(self).__name__}: the split 'train' has {len(stored):,} tokens, "
                            f"fewer than a row of block={self.block} and the token after it.")
        if len(stored) + self.block > IDS:  # Longer ones would begin again at negative places.
            raise UserError(f"{type(self).__name__}: the split {split!r} has {len(stored):,} "
                            f"tokens; {IDS - self.block:,} can be told apart.")
        if len(stored) < 2:
            raise UserError(f"{type(self).__name__}: the split {split!r} has {len(stored):,} "
                            f"tokens; train={self.train:g}, test_characters="
                            f"{self.test_characters} leave too little of it.")
        tokenizer = self.content.tokenizer
        first = len(tokenizer.decode(stored[:1]))
        return Stream(stored=stored, block=self.block,
                      characters=len(text) - first if tokenizer.exact else None)


@dataclass(frozen=True, kw_only=True)
class TextFile(LongText):
    """Your own text, UTF-8: a file, or all the .txt files of a folder in the order of their names.

    Attributes:
      path: of the file or folder.
    """

    path: str

    def prepare(self) -> None:
        text_files(self.path)

    def whole(self) -> str:
        return "\n".join(map(read_text, text_files(self.path)))


@dataclass(frozen=True, kw_only=True)
class Lines(Texts):
    """Many short texts, a row each: names, say. A row is "<end>", the text and "<end>".

    Which of them are the split "test" is drawn at random, but always the same; a text that is there
    several times counts once. A kind of it may define `prepare` and `lines`.

    Attributes:
      path: of a UTF-8 file, a text in each line.
      test: share of the texts.
      block: tokens of a row; None for those of the longest text. What is longer is an error.
    """

    path: str | None = None
    test: Fraction = 0.1
    block: Size | None = None

    special: ClassVar[tuple[str, ...]] = (END,)
    cut: ClassVar[tuple[str, ...]] = ("stand_in", "block")

    def prepare(self) -> None:
        if self.path is None:
            raise UserError("Lines: path=FILE is missing, a text in each line.")
        text_files(self.path)

    def lines(self) -> Sequence[str]:
        """The texts, in an order that never changes."""
        assert self.path is not None
        return [line.strip() for file in text_files(self.path)
                for line in read_text(file).split("\n")]

    def read(self) -> dict[str, list[str]]:
        lines = list(dict.fromkeys(filter(None, self.lines())))
        count = math.ceil(self.test * len(lines))
        if not 0 < count < len(lines):
            raise UserError(f"{type(self).__name__}: {len(lines):,} different texts, of which "
                            f"test={self.test:g} leaves a split empty.")
        order = permutation(0, 0, len(lines))
        return {"train": [lines[i] for i in np.sort(order[count:])],
                "test": [lines[i] for i in np.sort(order[:count])]}

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return 1 + max(len(t) for split in self.splits for t in self.content.tokens(split))

    def open(self, split: str) -> Source:
        self.check_split(split)
        texts, block = self.content.tokens(split), self.block or self.longest
        end = self.content.tokenizer.special.index(END)
        tokens = np.full((len(texts), block + 1), NONE, np.int32)
        for i, text in enumerate(texts):
            if len(text) + 1 > block:
                said = shown(repr(self.content.texts[split][i]))
                raise UserError(f"{type(self).__name__}: {said} makes a row of {len(text) + 1} "
                                f"tokens, more than block={block}.")
            tokens[i, 0], tokens[i, 1:1 + len(text)], tokens[i, 1 + len(text)] = end, text, end
        following = tokens[:, 1:].copy()
        return Arrays(arrays={"tokens": np.where(following == NONE, NONE, tokens[:, :-1]),
                              "next": following})


def text_files(path: str) -> list[Path]:
    """The files that a path means."""
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(place.rglob("*.txt"))
        if not found:
            raise UserError(f"data: path={shown(path)}: the folder holds no .txt file.")
        return found
    if not place.is_file():
        beside = [str(p) for p in place.parent.iterdir()] if place.parent.is_dir() else ()
        raise UserError(f"data: path={shown(path)}: there is no such file or folder."
                        f"{nearest(str(place), beside)}")
    return [place]


def no_file(kind: str, place: Path) -> UserError:
    """The error for a path that is no file."""
    if place.is_dir():
        return UserError(f"{kind}: path={shown(str(place))}: a folder, expected a file.")
    beside = [str(p) for p in place.parent.iterdir()] if place.parent.is_dir() else ()
    return DataMissing(f"{kind}: path={shown(str(place))}: there is no such file."
                       f"{nearest(str(place), beside)}")


def check_whole(text: str, where: str) -> None:
    """Raises a UserError for half of a character, as JSON may have of one beyond U+FFFF."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: character {error.start + 1:,} is {text[error.start]!r}, half of "
                        "one in UTF-16.") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with "\\n" at the end of lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        raise UserError(
            f"{path}: not UTF-8: byte {error.start:,}, in line {line:,}, is 0x"
            f"{content[error.start]:02x}; `iconv -f {guess} -t UTF-8` may help.") from error
    text = text.replace("\r\n", "\n")
    if not text.strip():
        raise UserError(f"{path}: there is no text in it.")
    return text
