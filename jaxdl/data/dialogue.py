"""What is said, and what is answered: the dialogues of plays."""

import itertools
import math
import re
from dataclasses import dataclass

from jaxdl.config import Fraction, Size
from jaxdl.data.corpora import Shakespeare
from jaxdl.data.pairs import Pairs
from jaxdl.data.source import permutation
from jaxdl.errors import UserError

NAME = r"[A-Z0-9][A-Za-z.'-]*"
SPEAKER = re.compile(rf"{NAME}(?: (?:{NAME}|of|and|the|to|a))*\.")  # alone in its line
SCENE = re.compile(r"(ACT|Act|SCENE|Scene|PROLOGUE|Prologue|EPILOGUE|Epilogue)\b")  # a heading
LEAST = 100  # replies of a play: what has fewer is a poem
HEARD = 30  # words of a speech, its last ones, that are answered


@dataclass(frozen=True, kw_only=True)
class ShakespeareReplies(Pairs):
    """Speeches in Shakespeare's plays, of each the last 30 words, and what the next one who speaks
    answers: 27,405 to train, 1,886 to test.

    They are out of the same package as `Shakespeare`, without stage directions and names. A reply
    is of the same scene. The split is by plays: no speech of the test set is in the training set.

    Attributes:
      test: share of the 36 plays.
    """

    longest: Size = 48
    cut_longer: bool = True
    test: Fraction = 0.05

    def prepare(self) -> None:
        Shakespeare().prepare()

    def read(self) -> dict[str, list[str]]:
        plays = [found for text in Shakespeare().texts() if len(found := replies(text)) >= LEAST]
        count = math.ceil(self.test * len(plays))
        if not 0 < count < len(plays):
            raise UserError(f"ShakespeareReplies: {len(plays)} plays, of which test="
                            f"{self.test:g} leaves a split empty.")
        order = permutation(0, 0, len(plays))
        chosen = {"train": sorted(order[count:]), "test": sorted(order[:count])}
        return {split: [pair[side] for side in (0, 1) for i in ids for pair in plays[i]]
                for split, ids in chosen.items()}


def replies(text: str) -> list[tuple[str, str]]:
    """The last words of each speech of a play, and the speech that follows it in its scene."""
    return [(" ".join(said.split()[-HEARD:]), answer) for scene in scenes(text)
            for said, answer in itertools.pairwise(scene)]


def scenes(text: str) -> list[list[str]]:
    """The speeches of each scene of a play, in Project Gutenberg's form: after an empty line the
    speaker's name and a full stop, then the speech; stage directions are in brackets."""
    found: list[list[list[str]]] = [[]]
    text = re.sub(r"\[[^\]]*\]", "", text)
    after_empty, speaks = True, False
    for line in map(str.strip, text.splitlines()):
        if SCENE.match(line):
            found.append([])
            speaks = False
        elif after_empty and SPEAKER.fullmatch(line):
            found[-1].append([])
            speaks = True
        elif line and speaks:
            found[-1][-1].append(line)
        after_empty = not line
    return [[" ".join(speech) for speech in scene if speech] for scene in found]
