"""Text as numbers and back.

An experiment declares a kind of tokenizer (`Characters()`, `Bytes()`, `BPE(vocabulary=2_048)`,
`Words(vocabulary=8_000)`); `fit` makes a `Tokenizer` of it from the training text, always the same
one. It is kept in the run as tokenizer.json, so that a run can be asked without its data.

A token of -1 is none: what fills a row up, and what is not to be predicted. No tokenizer uses it,
so none has to give up one of its own for that.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdl.config import Size
from jaxdl.errors import UserError, shown

NONE = -1  # no token


class Tokenizer(Protocol):
    """Text as tokens 0 ... size - 1, of which the first are special ones that no text has.

    Attributes:
      special: names of the special tokens, "<end>" for one.
      exact: whether `decode` gives back what was encoded. Of a tokenizer that does not, texts are
        words and marks with a blank between two.
    """

    @property
    def special(self) -> tuple[str, ...]: ...

    @property
    def exact(self) -> bool: ...

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """Tokens, int32 [N]; a UserError for what it cannot tell apart."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; special ones and those of -1 are left out."""
        ...

    def record(self) -> Mapping[str, Any]:
        """What tokenizer.json holds."""
        ...


class Kind(Protocol):
    """A tokenizer as an experiment declares it."""

    def fit(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> Tokenizer: ...


# Characters and bytes.


@dataclass(frozen=True, kw_only=True)
class Characters:
    """A token for each character of the text, in the order of their numbers in Unicode."""

    def fit(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> "OfCharacters":
        return OfCharacters(special, "".join(sorted(set().union(*texts))))


@dataclass(frozen=True)
class OfCharacters:
    """The characters, after the special tokens."""

    special: tuple[str, ...]
    characters: str

    @property
    def size(self) -> int:
        return len(self.special) + len(self.characters)

    @property
    def exact(self) -> bool:
        return True

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = np.frombuffer(self.characters.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.searchsorted(known, points)
        strange = places == len(known)
        strange[~strange] = known[places[~strange]] != points[~strange]
        if strange.any():
            i = int(strange.argmax())
            raise UserError(f"{text[i]!r}, character {i + 1} of {shown(repr(text))}: none of the "
                            f"{len(known)} of the tokenizer, {shown(repr(self.characters))}.")
        return (places + len(self.special)).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        first = len(self.special)
        return "".join(self.characters[t - first] for t in map(int, tokens) if t >= first)

    def record(self) -> Mapping[str, Any]:
        return {"kind": "characters", "special": self.special, "characters": self.characters}


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A token for each of the 256 bytes of UTF-8: it knows every text."""

    def fit(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> "OfBytes":
        return OfBytes(special)


@dataclass(frozen=True)
class OfBytes:
    """The bytes, after the special tokens."""

    special: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.special) + 256

    @property
    def exact(self) -> bool:
        return True

    def encode(self, text: str) -> np.ndarray:
        encoded = text.encode("utf-8", "surrogatepass")
        return np.frombuffer(encoded, np.uint8).astype(np.int32) + len(self.special)

    def decode(self, tokens: Iterable[int]) -> str:
        first = len(self.special)
        return bytes(t - first for t in map(int, tokens) if t >= first).decode("utf-8", "replace")

    def record(self) -> Mapping[str, Any]:
        return {"kind": "bytes", "special": self.special}


# Words and pieces of words.


@dataclass(frozen=True, kw_only=True)
class BPE:
    """Pieces of words by byte-pair encoding: Sennrich et al. (2016), section 3.2, over bytes as in
    GPT-2 (Radford et al. 2019, section 2.2), so that it knows every text.

    Attributes:
      vocabulary: how many pieces, the 256 bytes and special tokens included.
    """

    vocabulary: Size = 2_048

    def fit(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> "OfPieces":
        library = _library()
        if self.vocabulary < 256 + len(special):
            raise UserError(f"BPE: vocabulary={self.vocabulary}: expected at least "
                            f"{256 + len(special)}, for the bytes and the special tokens.")
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        made.train_from_iterator(_lines(texts), library.trainers.BpeTrainer(
            vocab_size=self.vocabulary, special_tokens=list(special), show_progress=False,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
        return OfPieces(special, made.to_str())


UNKNOWN = "<unknown>"


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words and marks of punctuation, the most frequent ones; any other is "<unknown>", a special
    token that is added to those asked for.

    Attributes:
      vocabulary: how many, special tokens included.
      lower: do without capitals.
    """

    vocabulary: Size = 8_000
    lower: bool = False

    def fit(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> "OfPieces":
        library = _library()
        special = (*special, UNKNOWN)
        if self.vocabulary <= len(special):
            raise UserError(f"Words: vocabulary={self.vocabulary}: expected more than the "
                            f"{len(special)} special tokens.")
        split = library.pre_tokenizers.Whitespace()
        lower = library.normalizers.Lowercase()
        count: Counter[str] = Counter()
        for text in texts:
            normal = lower.normalize_str(text) if self.lower else text
            count.update(word for word, _ in split.pre_tokenize_str(normal))
        # Of equally frequent ones those that come first in the text, whatever trains elsewhere.
        words = [w for w, _ in count.most_common(self.vocabulary - len(special))]
        made = library.Tokenizer(library.models.WordLevel(
            {word: i for i, word in enumerate((*special, *words))}, unk_token=UNKNOWN))
        if self.lower:
            made.normalizer = lower
        made.pre_tokenizer = split
        return OfPieces(special, made.to_str())


class OfPieces:
    """What the library `tokenizers` has made, as the JSON text that it writes and reads.

    Args:
      special: names of the special tokens, which are its first.
      text: that JSON.
    """

    def __init__(self, special: tuple[str, ...], text: str) -> None:
        self.special, self._text = special, text
        self._pieces = _library().Tokenizer.from_str(text)
        self._pieces.no_truncation()  # which published ones may have, for a network of their own
        self._pieces.no_padding()
        self._size = max(self._pieces.get_vocab().values(), default=-1) + 1
        content = json.loads(text)
        self._words = content["model"]["type"] == "WordLevel"
        self.exact = content["model"]["type"] == "BPE" and content.get("normalizer") is None
        # Else "<end>" in a text would be that token. Published ones have none that we know of.
        self._pieces.encode_special_tokens = bool(special)

    @property
    def size(self) -> int:
        return self._size

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._pieces.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text's tokens; by all processors."""
        return [np.array(e.ids, np.int32)
                for e in self._pieces.encode_batch_fast(list(texts), add_special_tokens=False)]

    def places_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Where each text's tokens begin and end, [N_i, 2]."""
        return [np.array(e.offsets, np.int32).reshape(-1, 2)
                for e in self._pieces.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        kept = [t for t in map(int, tokens) if t >= len(self.special)
                or (t >= 0 and self.special[t] == UNKNOWN)]
        if self._words:
            return " ".join(self._pieces.id_to_token(t) or "" for t in kept)
        return self._pieces.decode(kept, skip_special_tokens=False)

    def record(self) -> Mapping[str, Any]:
        return {"kind": "pieces", "special": self.special, "tokenizers": json.loads(self._text)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OfPieces) and self.record() == other.record()

    def __hash__(self) -> int:
        return hash(self._text)


def special_token(tokenizer: Tokenizer, name: str) -> int:
    """The special token of that name; a UserError if there is none."""
    if name not in tokenizer.special:
        raise UserError(f"tokenizer.json: there is no token {name!r}: it is not the tokenizer that "
                        "the network was trained with.")
    return tokenizer.special.index(name)


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text's tokens, int32 [N_i]."""
    if isinstance(tokenizer, OfPieces):
        return tokenizer.encode_all(texts)
    return [tokenizer.encode(text) for text in texts]


def places_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Where the tokens of each text begin and end in it, in characters: int32 [N_i, 2]."""
    if isinstance(tokenizer, OfPieces):
        return tokenizer.places_all(texts)
    found = []
    for text in texts:
        count = [len(c.encode("utf-8", "surrogatepass")) if isinstance(tokenizer, OfBytes) else 1
                 for c in text]
        begins = np.repeat(np.arange(len(text), dtype=np.int32), count)
        found.append(np.stack([begins, begins + 1], -1))
    return found


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token is of the text of them all, which these pieces make together."""
    whole = tokenizer.decode(tokens)
    ends = [len(tokenizer.decode(tokens[:i])) for i in range(len(tokens))] + [len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The tokenizer of another run, or of a file: what was learned with it can be gone on with.

    Attributes:
      path: a run directory, its tokenizer.json, or the file of that name that is published with
        weights, such as those of GPT-2; the latter has no special tokens that begin and end texts.
    """

    path: str

    def fit(self, texts: Sequence[str], special: tuple[str, ...] = ()) -> Tokenizer:
        place = Path(self.path).expanduser()
        if not place.exists():
            raise UserError(f"data.tokenizer.path={self.path}: there is no such run or file; the "
                            "experiment's docstring may say where it comes from.")
        found = load(place / FILE if place.is_dir() else place)
        if found.special[:len(special)] != special:
            raise UserError(f"{self.path}: the special tokens of this tokenizer are "
                            f"{', '.join(found.special) or 'none'}; expected {', '.join(special)} "
                            "first.")
        return found


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise UserError("words and pieces of words take the library tokenizers: pip install "
                        "'jaxdl[text]'.") from error
    return tokenizers


def _lines(texts: Sequence[str]) -> Iterable[str]:
    """In portions that the library can divide among processors; no piece goes beyond a line."""
    for text in texts:
        yield from text.splitlines(keepends=True)


# tokenizer.json.


FILE = "tokenizer.json"


def saved(tokenizer: Tokenizer) -> bytes:
    """The content of tokenizer.json."""
    return json.dumps(tokenizer.record(), ensure_ascii=False, indent=1).encode(
        "utf-8", "surrogatepass")


def load(path: Path) -> Tokenizer:
    """The tokenizer that a file holds, or that the library `tokenizers` has written, as published
    ones are; a UserError if it holds none."""
    try:
        found = json.loads(path.read_bytes())
        if "kind" not in found and "model" in found:
            return OfPieces((), json.dumps(found))
        special = tuple(map(str, found["special"]))
        if found["kind"] == "characters":
            characters = str(found["characters"])
            if "".join(sorted(set(characters))) != characters:
                raise ValueError("characters that are not in order")
            return OfCharacters(special, characters)
        if found["kind"] == "bytes":
            return OfBytes(special)
        if found["kind"] == "pieces":
            return OfPieces(special, json.dumps(found["tokenizers"]))
        raise ValueError(f"kind={found['kind']!r}, expected 'characters', 'bytes' or 'pieces'")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except Exception as error:  # The library raises what it likes for a damaged tokenizer.
        raise UserError(f"{path}: not a tokenizer ({type(error).__name__}: "
                        f"{shown(str(error))}).") from error
