"""What do film critics write? A small BERT learns it from 18,000 reviews: 4.3 nats a hidden word.

    python launch.py --experiment=bert_small --workdir=runs/bert_small
    python launch.py --experiment=bert_classify

Devlin et al. (2019), https://arxiv.org/abs/1810.04805, section 3.1, task 1, with 4 blocks of width
128 instead of 12 of 768, with words instead of pieces, 30 % of them hidden (Wettig et al. 2023,
https://arxiv.org/abs/2202.08005), and with rotary positions and norms before each part. As it is
published it had learned little more than frequencies after 800 steps (6.06 nats). Its text is that
of the training reviews of `MovieReviews`, 4.9 million words; their last tenth is measured. How
frequent each word is gives 6.49 nats; how often each stands between its two neighbours, with
Witten-Bell smoothing by how often it stands beside one of them, gives 4.31 (`python
benchmarks/ngram.py`), which has to be beaten.
`test/loss` is the number; `bert_classify` goes on from this run.
"""

from jaxdl.data.labelled_text import MovieReviewsText
from jaxdl.data.tokenizers import Words
from jaxdl.experiment import Experiment
from jaxdl.models.bert import Bert
from jaxdl.optimizer import AdamW, Cosine
from jaxdl.tasks.language import Perplexity
from jaxdl.tasks.masked_language import MaskedLanguageModel


def config() -> Experiment:
    return Experiment(
        task=MaskedLanguageModel(hidden=30, model=Bert(
            vocabulary=20_001, layers=4, width=128, heads=4, block=256, types=0,
            positions="rotary", norm_after=False)),
        data=MovieReviewsText(tokenizer=Words(vocabulary=20_000, lower=True), block=256),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, warmup=0.05), b2=0.98, weight_decay=0.01,
                        clip=1.),
        evals={"test": Perplexity(split="test", every=500)},
        steps=2_500, batch_size=32, log_every=50, save_every=500,
    )
