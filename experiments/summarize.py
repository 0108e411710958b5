"""What does the review say in a sentence? The first one, of the rest of it: 20 ROUGE-1.

    python launch.py --experiment=summarize
    python launch.py predict --experiment=RUN_DIR --prompt="The acting is poor and it drags on."

The first sentence of a review of a film, which most often says whether it is any good, is made of
the 45 words after it: 14,252 reviews to train, 3,574 of other films to test, of which the first 500
are measured, with a beam search. A small Transformer as in `translate_transformer`, where Rush et
al. (2015), https://arxiv.org/abs/1509.00685, made headlines of first sentences. The next sentence
as it stands has 13.0 ROUGE-1, and the best of 200 sentences, the same for all, 17.4 (`python
benchmarks/translation_baselines.py`); both must be beaten. No paper has this split. `test/rouge1`
is the number.
"""

from jaxdl.data.summaries import ReviewOpenings
from jaxdl.data.tokenizers import BPE
from jaxdl.experiment import Best, Experiment
from jaxdl.models.encoder_decoder import EncoderDecoder
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.seq2seq import Seq2Seq, Translation


def config() -> Experiment:
    return Experiment(
        task=Seq2Seq(model=EncoderDecoder(vocabulary=4_000, layers=2, width=128, heads=4, block=96,
                                          dropout=0.2), label_smoothing=0.1),
        data=ReviewOpenings(tokenizer=BPE(vocabulary=4_000), test_pairs=500),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.1), b2=0.98, clip=1.),
        evals={"test": Translation(every=660, tokens=40, beams=8, length_penalty=1.,
                                   scores=("rouge1", "rougeL"), batch_size=100)},
        best=Best(metric="test/rouge1"),
        steps=1_980, batch_size=64, log_every=66, save_every=330,  # nine epochs
    )
