"""Texts and what stands for them: the first sentence of a review, which says what it is about."""

import re
from dataclasses import dataclass

from jaxdl.config import Size
from jaxdl.data.labelled_text import MovieReviews
from jaxdl.data.pairs import Pairs
from jaxdl.data.tokenizers import BPE, Kind
from jaxdl.errors import UserError

SENTENCE = re.compile(r"(?<=[.!?])\s+")  # between two sentences
LEAST, MOST = 4, 25  # words of a first sentence; others are greetings, or stand for nothing


@dataclass(frozen=True, kw_only=True)
class ReviewOpenings(Pairs):
    """The first sentences of the reviews of `MovieReviews`, of 4 to 25 words, and of the rest of
    each review the first `words`: 14,252 to train, 3,574 to test.

    The split is theirs: reviews of one film are either trained on or tested on.

    Attributes:
      words: of a review.
    """

    tokenizer: Kind = BPE(vocabulary=4_000)
    longest: Size = 96
    longest_target: Size | None = 56
    words: Size = 45

    def prepare(self) -> None:
        MovieReviews().prepare()

    def read(self) -> dict[str, list[str]]:
        found = {}
        for split, examples in MovieReviews().labelled().items():
            pairs = [pair for e in examples if (pair := opening(e.text, self.words)) is not None]
            if not pairs:
                raise UserError(f"ReviewOpenings: no review of the split {split!r} has an opening.")
            found[split] = [pair[side] for side in (0, 1) for pair in pairs]
        return found


def opening(text: str, words: int) -> tuple[str, str] | None:
    """(so many words after the first sentence, that sentence) if it is neither short nor long."""
    first, *rest = SENTENCE.split(text.strip(), maxsplit=1)
    if not LEAST <= len(first.split()) <= MOST or not rest or len(rest[0].split()) < MOST:
        return None
    return " ".join(rest[0].split()[:words]), " ".join(first.split())
