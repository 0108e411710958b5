"""What a network must beat on a text: counts of the tokens beside each.

    python benchmarks/ngram.py

- Replies (`dialogue`): each token by the one and by the two before it.
- Missing names of the Bible (`qa_names`): the one that the text has most often, of those that the
  question has not.
- Hidden words of reviews (`bert_small`): each word by its two neighbours, of the first 100,000
  words of the test split.

Smoothed after Witten & Bell (1991): p(x | h) = (count(h x) + types(h) p(x | h')) / (count(h) +
types(h)), where types(h) is how many different tokens follow h, and h' is h without what is
furthest away. For two neighbours p(x | h') is the mean of those by the left and by the right one.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from jaxdl.data.corpora import BibleNames
from jaxdl.data.labelled_text import MovieReviewsText
from jaxdl.data.spans import BibleNamesAsked, most_frequent
from jaxdl.data.tokenizers import BPE, Words

WORDS = 100_000


class Counts:
    """Of tokens after contexts, which may be any hashable thing."""

    def __init__(self, seen: Iterable[tuple[object, int]]) -> None:
        self.both = Counter(seen)
        self.context: Counter[object] = Counter()
        for (context, _), n in self.both.items():
            self.context[context] += n
        self.types = Counter(context for context, _ in self.both)

    def __call__(self, context: object, token: int, otherwise: float) -> float:
        """Of the token after a context, given what it is without one."""
        n, types = self.context[context], self.types[context]
        return (self.both[context, token] + types * otherwise) / (n + types) if n else otherwise


def forwards(train: Sequence[Sequence[int]], test: Sequence[Sequence[int]], order: int,
             vocabulary: int, end: int, longest: int) -> float:
    """Nats a token of rows, each followed by `end` and then cut to the longest, by up to `order` -
    1 tokens before it."""
    def steps(rows: Sequence[Sequence[int]], k: int) -> Iterable[tuple[object, int]]:
        for row in rows:
            whole = (end,) * (order - 1) + (*map(int, row), end)[:longest]
            for i in range(order - 1, len(whole)):
                yield whole[i - k:i], whole[i]

    counts = [Counts(steps(train, k)) for k in range(order)]
    total = number = 0
    for each in zip(*(steps(test, k) for k in range(order)), strict=True):
        p = 1 / vocabulary
        for known, (context, token) in zip(counts, each, strict=True):
            p = known(context, token, p)
        total, number = total - math.log(p), number + 1
    return total / number


def between(train: np.ndarray, test: np.ndarray, vocabulary: int) -> tuple[float, float]:
    """(nats a word by how frequent it is, by its two neighbours)."""
    share = np.bincount(train, minlength=vocabulary) + 1.
    share /= share.sum()
    words, held = train.tolist(), test.tolist()
    left = Counts(itertools.pairwise(words))
    right = Counts(zip(words[1:], words, strict=False))
    both = Counts(zip(zip(words, words[2:], strict=False), words[1:], strict=False))
    total = 0.
    for before, word, after in zip(held, held[1:], held[2:], strict=False):
        one = (left(before, word, share[word]) + right(after, word, share[word])) / 2
        total -= math.log(both((before, after), word, one))
    return -float(np.log(share[test]).mean()), total / (len(held) - 2)


def main() -> None:
    from jaxdl.data.dialogue import ShakespeareReplies

    print("| text | baseline | nats |\n| --- | --- | --- |")
    data = ShakespeareReplies(tokenizer=BPE(vocabulary=4_000))
    data.prepare()
    train, test = data.open("train"), data.open("test")
    for order in (2, 3):
        nats = forwards(train.target, test.target, order, data.vocabulary,
                        data.content.tokenizer.special.index("<end>"), data.longest)
        print(f"| replies | the {order - 1} before | {nats:.3f} |")
    asked = BibleNamesAsked()
    asked.prepare()
    known = set(BibleNames().lines())
    questions = asked.questions["test"]
    right = sum(most_frequent(q, known) in q.answers for q in questions) / len(questions)
    print(f"| names | the most frequent one | right for {right:.1%} |")
    reviews = MovieReviewsText(tokenizer=Words(vocabulary=20_000, lower=True))
    reviews.prepare()
    alone, both = between(reviews.content.tokens("train")[0],
                          reviews.content.tokens("test")[0][:WORDS], reviews.vocabulary)
    print(f"| reviews | how frequent | {alone:.3f} |\n| reviews | both neighbours | {both:.3f} |")


if __name__ == "__main__":
    main()
