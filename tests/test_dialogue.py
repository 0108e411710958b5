"""Speeches of plays and their replies. The plays here are made up."""

import pytest

from jaxdl.data.corpora import Shakespeare
from jaxdl.data.dialogue import ShakespeareReplies, replies, scenes
from jaxdl.data.tokenizers import Characters
from jaxdl.errors import UserError

PLAY = """THE PLAY

by Nobody

ACT I.

SCENE 1. A heath.

[Thunder.
Enter two WITCHES.]

FIRST WITCH.
When shall we meet
again? [Aside] Soon.

Sec. Witch.
When the battle is done.

[Exit.]

That will be soon.

DUKE OF YORK.

Where?

SCENE 2. Elsewhere.

MACBETH.
So fair a day. An
act hath three branches.
"""


def test_speeches_stand_after_the_name_of_who_speaks():
    assert scenes(PLAY) == [
        [], [], ["When shall we meet again?  Soon.",
                 "When the battle is done. That will be soon.", "Where?"], [
            "So fair a day. An act hath three branches."]]
    assert replies(PLAY) == [
        ("When shall we meet again? Soon.", "When the battle is done. That will be soon."),
        ("When the battle is done. That will be soon.", "Where?")]


def test_the_last_words_are_answered():
    said = " ".join(map(str, range(40)))
    assert replies(f"\nA.\n{said}\n\nB.\nYes.\n") == [(" ".join(map(str, range(10, 40))), "Yes.")]


def test_plays_are_tested_whole(monkeypatch):
    plays = ["\n".join(f"\nA.\nplay {p} speech {i}\n" for i in range(102)) for p in range(6)]
    monkeypatch.setattr(Shakespeare, "texts", lambda self: [*plays, "A poem.\n"])
    data = ShakespeareReplies(tokenizer=Characters(), test=0.3)
    found = {split: {text.split(" speech")[0] for text in texts}
             for split, texts in data.read().items()}
    assert len(found["train"]) == 4 and len(found["test"]) == 2
    assert not found["train"] & found["test"]
    source = data.open("test")
    assert source.size == 2 * 101
    assert all(a.split()[-1] == str(int(b.split()[-1]) - 1) for a, b in source.texts)
    with pytest.raises(UserError, match="6 plays, of which test=1 leaves a split empty"):
        ShakespeareReplies(test=1.).read()
