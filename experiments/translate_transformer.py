"""The Bible from English into Spanish by a Transformer: 16 BLEU.

    python launch.py --experiment=translate_transformer
    python launch.py predict --experiment=RUN_DIR --prompt="And God said, Let it be." --beams=4

Vaswani et al. (2017), https://arxiv.org/abs/1706.03762: encoder and decoder of 3 blocks each, 256
wide, with label smoothing 0.1, dropout 0.1 and one table of 4,000 pieces of words for both sides
and the head; normalised before each part. The verses, and what is measured of them, are those of
`translate_attention`, beside which this stands. No paper has this split. `test/bleu` is the number;
the accuracy of single tokens is logged beside it.
"""

from jaxdl.data.pairs import BibleVerses
from jaxdl.data.tokenizers import BPE
from jaxdl.experiment import Best, Experiment
from jaxdl.models.encoder_decoder import EncoderDecoder
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.seq2seq import Seq2Seq, Translation


def config() -> Experiment:
    return Experiment(
        task=Seq2Seq(model=EncoderDecoder(vocabulary=4_000, layers=3, width=256, heads=4, block=80,
                                          dropout=0.1), label_smoothing=0.1),
        data=BibleVerses(tokenizer=BPE(vocabulary=4_000), longest=64, test_pairs=500),
        optimizer=Adam(learning_rate=Cosine(peak=1e-3, warmup=0.1), b2=0.98, clip=1.),
        evals={"test": Translation(every=3_000, tokens=80, batch_size=100)},
        best=Best(metric="test/bleu"),
        steps=3_000, batch_size=64, log_every=100, save_every=500,
    )
