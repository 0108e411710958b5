"""What a translation must beat: the source itself, and word for word by a dictionary. And what the
first sentence of a review must: the next one, and one sentence for all.

    python benchmarks/translation_baselines.py

The dictionary is learned from the training pairs of `BibleVerses` by IBM's first model (Brown et
al. 1993, section 4.1): t(e | f) by five rounds of expectation and maximisation. Each word of a
source becomes the likeliest one of the target; words that are not known are copied. BLEU and chrF
are those of `jaxdl.tasks.seq2seq`, on all test pairs. The one sentence is that of 200 training
reviews which has the best ROUGE-1 with those of 150 others; both are measured on 500 test reviews.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jaxdl.data.pairs import BibleVerses
from jaxdl.data.summaries import SENTENCE, ReviewOpenings
from jaxdl.data.tokenizers import Words
from jaxdl.tasks.seq2seq import SCORES, bleu, chrf

ROUNDS = 5
WORDS = re.compile(r"\w+|[^\w\s]")


def dictionary(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The likeliest target word of each source word."""
    split = [(WORDS.findall(a.lower()), WORDS.findall(b)) for a, b in pairs]
    table: dict[tuple[str, str], float] = defaultdict(lambda: 1.)
    for _ in range(ROUNDS):
        count: dict[tuple[str, str], float] = defaultdict(float)
        total: dict[str, float] = defaultdict(float)
        for source, target in split:
            for word in target:
                norm = sum(table[s, word] for s in source)
                for s in source:
                    part = table[s, word] / norm
                    count[s, word] += part
                    total[s] += part
        table = defaultdict(float, {(s, t): c / total[s] for (s, t), c in count.items()})
    best: dict[str, tuple[float, str]] = {}
    for (s, t), p in table.items():
        best[s] = max(best.get(s, (0., "")), (p, t))
    return {s: t for s, (_, t) in best.items()}


def by_words(text: str, known: dict[str, str]) -> str:
    """Each word translated, marks without blanks before them."""
    words = [known.get(w.lower(), w) for w in WORDS.findall(text)]
    return re.sub(r" ([,.;:?!)])", r"\1", " ".join(words))


def main() -> None:
    data = BibleVerses(tokenizer=Words(vocabulary=100))  # which the texts do not depend on
    data.prepare()
    texts = data.content.texts
    train, test = ([*zip(x[:len(x) // 2], x[len(x) // 2:], strict=True)]
                   for x in (texts["train"], texts["test"]))
    known = dictionary(train)
    print(f"{len(train):,} training pairs, {len(known):,} words, {len(test):,} test pairs")
    print("| baseline | BLEU | chrF |\n| --- | --- | --- |")
    for name, answers in (("the source itself", [a for a, _ in test]),
                          ("word for word", [by_words(a, known) for a, _ in test])):
        wanted = [b for _, b in test]
        print(f"| {name} | {bleu(answers, wanted):.2f} | {chrf(answers, wanted):.1f} |")


    openings()


def openings() -> None:
    """The baselines of `experiments/summarize.py`."""
    data = ReviewOpenings(tokenizer=Words(vocabulary=100), test_pairs=500)
    data.prepare()
    test: Any = data.open("test")
    wanted = [b for _, b in test.texts]
    train = data.content.texts["train"]
    drawn = random.Random(0).sample(train[len(train) // 2:], 350)
    best = max(drawn[:200], key=lambda one: SCORES["rouge1"]([one] * 150, drawn[200:]))
    print("\n| baseline | ROUGE-1 | ROUGE-L |\n| --- | --- | --- |")
    for name, answers in (("the next sentence", [SENTENCE.split(a)[0] for a, _ in test.texts]),
                          (f"always: {best}", [best] * len(wanted))):
        found = [SCORES[kind](answers, wanted) for kind in ("rouge1", "rougeL")]
        print("| {} | {:.1f} | {:.1f} |".format(name, *found))


if __name__ == "__main__":
    main()
