"""Five stars or fewer? The mean of words and pairs of words: 81 % test accuracy on reviews of food.

    python launch.py --experiment=sentiment_foods
    python launch.py sweep --experiment=sentiment_foods

The model of Joulin et al. (2016), https://arxiv.org/abs/1607.01759, section 2, on 4,000 reviews
from Amazon (McAuley & Leskovec 2013), of which 65.8 % of the test set have five stars. The baseline
is a logistic regression on TF-IDF of words and pairs of words: 80.9 % (`data.labelled_text`), and
the goal to be above it. The sweep has a CNN (Kim 2014) and an LSTM beside it, three seeds each. No
paper states these numbers; with 1,000 reviews to test, a point is within chance (1.2 points).
"""

from jaxdl.data.labelled_text import FineFoods
from jaxdl.data.tokenizers import Words
from jaxdl.experiment import Best, Experiment
from jaxdl.models.fasttext import FastText
from jaxdl.models.text_rnn import TextRNN
from jaxdl.models.textcnn import TextCNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import ClassificationReport
from jaxdl.tasks.text_classification import SequenceClassification


def config() -> Experiment:
    return Experiment(
        task=SequenceClassification(
            model=FastText(vocabulary=8_000, embedding=16, buckets=1 << 16), word_dropout=0.3),
        data=FineFoods(tokenizer=Words(vocabulary=8_000, lower=True), block=192),
        optimizer=Adam(learning_rate=Cosine(peak=5e-3, warmup=0.05)),
        evals={"test": ClassificationReport(split="test", every=620, batch_size=200)},
        best=Best(metric="test/accuracy"),
        steps=620, batch_size=64, log_every=62,
    )


def sweep() -> list[Trial]:
    def of(model: object) -> Trial:
        return {"task": SequenceClassification(model=model, word_dropout=0.3)}  # type: ignore

    return repeat([
        of(FastText(vocabulary=8_000, embedding=16, buckets=1 << 16)),
        of(TextCNN(vocabulary=8_000, embedding=64, widths=(2, 3), filters=64)),
        of(TextRNN(vocabulary=8_000, embedding=64, width=32))], 3)
