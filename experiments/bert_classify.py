"""Does a critic like the film? A small BERT that has read 18,000 reviews is told of them: 87 %.

    python launch.py --experiment=bert_small --workdir=runs/bert_small
    python launch.py --experiment=bert_classify
    python launch.py sweep --experiment=bert_classify

The network of `bert_small` with a classifier on the mean of its outputs, trained as a whole: Devlin
et al. (2019), https://arxiv.org/abs/1810.04805, section 3. It sees the first and the last 128 words
of the reviews of `sentiment_cnn`. Test accuracy is the number. The sweep adds the same network from
scratch, which it must beat; a logistic regression on TF-IDF of words and pairs of words has 89.4 %
(`data.labelled_text`).
"""

from jaxdl.data.labelled_text import MovieReviews
from jaxdl.data.tokenizers import Saved
from jaxdl.experiment import Best, Experiment, InitFrom
from jaxdl.models.bert import Bert
from jaxdl.optimizer import AdamW, Cosine
from jaxdl.sweep import Trial
from jaxdl.tasks.classification import ClassificationReport
from jaxdl.tasks.text_classification import SequenceClassification

READ = InitFrom(path="runs/bert_small", fresh=("params/(pooler|head)/.*",))


def config() -> Experiment:
    return Experiment(
        task=SequenceClassification(model=Bert(
            vocabulary=20_001, layers=4, width=128, heads=4, block=256, types=0,
            positions="rotary", norm_after=False, output="class", pool="mean", dropout=0.1),
            ema=0.98),
        data=MovieReviews(tokenizer=Saved(path="runs/bert_small"), block=256, keep="both"),
        optimizer=AdamW(learning_rate=Cosine(peak=5e-4, warmup=0.1), weight_decay=0.01, clip=1.),
        init_from=READ,
        evals={"test": ClassificationReport(split="test", every=620, batch_size=250)},
        best=Best(metric="test/accuracy"),
        steps=620, batch_size=32, log_every=31,  # one epoch
    )


def sweep() -> list[Trial]:
    return [{"init_from": READ}, {"init_from": InitFrom()}]
