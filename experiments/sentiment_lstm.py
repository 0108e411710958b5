"""Does a critic like the film? An LSTM that reads in both directions: 88.4 % test accuracy.

    python launch.py --experiment=sentiment_lstm

An LSTM with pooling as in Johnson & Zhang (2016), https://arxiv.org/abs/1602.02373, section 2, but
on embeddings that start random, with 64 units in each direction, on 20,000 reviews (Maas et al.
2011) of which it sees the first and the last 128 words. Theirs reads one-hot words, has 500 units
in each direction, and is right for 91.86 % of another test set after training on 25,000 (table 2).
The baseline here is a logistic regression on TF-IDF of words and pairs of words: 89.4 %
(`data.labelled_text`), so what is expected is to come within one point of it.
"""

from jaxdl.data.labelled_text import MovieReviews
from jaxdl.data.tokenizers import Words
from jaxdl.experiment import Experiment
from jaxdl.models.text_rnn import TextRNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.classification import ClassificationReport
from jaxdl.tasks.text_classification import SequenceClassification


def config() -> Experiment:
    return Experiment(
        task=SequenceClassification(
            model=TextRNN(vocabulary=20_000, embedding=64, width=64), word_dropout=0.2),
        data=MovieReviews(tokenizer=Words(vocabulary=20_000, lower=True), block=256, keep="both"),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=1.),
        evals={"test": ClassificationReport(split="test", every=620, batch_size=256)},
        steps=1_860, batch_size=64, log_every=62,
    )
