"""Does a critic like the film? Convolutions over words that start random: 88.4 % test accuracy.

    python launch.py --experiment=sentiment_cnn

The network of Kim (2014), https://arxiv.org/abs/1408.5882, section 2, "CNN-rand" of section 3.3, on
20,000 reviews (Maas et al. 2011) of which it sees the first and the last 256 words, but with the
mean of each filter over the text in place of its maximum, less than two epochs, and the average of
the weights on the way: with his maximum it learns the training set by heart (85.9 %). He has 76.1 %
on sentences of reviews (table 2); no paper states a number for this split. Its baseline is a
logistic regression on TF-IDF of words and pairs of words: 89.4 % (`data.labelled_text`), so what is
expected is to come within one point of it.
"""

from jaxdl.data.labelled_text import MovieReviews
from jaxdl.data.tokenizers import Words
from jaxdl.experiment import Experiment
from jaxdl.models.textcnn import TextCNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.classification import ClassificationReport
from jaxdl.tasks.text_classification import SequenceClassification


def config() -> Experiment:
    return Experiment(
        task=SequenceClassification(
            model=TextCNN(vocabulary=20_000, embedding=32, widths=(2, 3), filters=64, pool="mean",
                          embedding_dropout=0.5),
            word_dropout=0.5, ema=0.98),
        data=MovieReviews(tokenizer=Words(vocabulary=20_000, lower=True), block=512, keep="both"),
        optimizer=Adam(learning_rate=Cosine(peak=4e-3, end=0.3, warmup=0.05)),
        evals={"test": ClassificationReport(split="test", every=480, batch_size=256)},
        steps=480, batch_size=64, log_every=40,
    )
