"""The first sentences of reviews. The reviews here are made up."""

import pytest

from jaxdl.data.labelled_text import Example, MovieReviews
from jaxdl.data.summaries import ReviewOpenings, opening
from jaxdl.data.tokenizers import Characters
from jaxdl.errors import UserError

REST = " ".join(f"word{i}" for i in range(30))


@pytest.mark.parametrize("text,first", [
    (f"A film about dogs. {REST}.", "A film about dogs."),
    (f"Is it\n any good?  {REST}", "Is it any good?"),
    (f"Wow! {REST}.", None), (f"{REST}. {REST}.", None), ("A film about dogs. It is short.", None),
    ("One sentence and no more", None)])
def test_what_is_an_opening(text, first):
    found = opening(text, 5)
    assert found == (first and ("word0 word1 word2 word3 word4", first))


def test_reviews_are_split_as_the_films_are(monkeypatch):
    reviews = {"train": [Example(f"This is review {i}. {REST}", 0, 0) for i in range(3)],
               "test": [Example(f"This is another one, {i}. {REST}", 1, 1) for i in range(2)]}
    monkeypatch.setattr(MovieReviews, "labelled", lambda self: reviews)
    data = ReviewOpenings(tokenizer=Characters(), longest=300, words=3, test_pairs=1)
    assert data.open("train").texts[2] == ("word0 word1 word2", "This is review 2.")
    assert data.open("test").texts == [("word0 word1 word2", "This is another one, 0.")]
    reviews["test"] = [Example("Short.", 0, 0)]
    with pytest.raises(UserError, match="no review of the split 'test' has an opening"):
        ReviewOpenings().read()
