"""What would Shakespeare's people answer? 4.8 nats for each piece of a word of their replies.

    python launch.py --experiment=dialogue
    python launch.py predict --experiment=RUN_DIR --prompt="My lord, the king is dead." --samples=3

A bidirectional GRU reads the last 30 words of a speech, another one with attention answers: the
neural conversational model of Vinyals & Le (2015), https://arxiv.org/abs/1506.05869, section 3, on
27,405 replies of 34 plays, tested on 1,886 of two others. As there, it is compared with counts of
groups of words: each piece by the one before it has 4.86 nats, by the two before 4.85 (`python
benchmarks/ngram.py`), which must be beaten. `test/loss` is the number.
"""

from jaxdl.data.dialogue import ShakespeareReplies
from jaxdl.data.tokenizers import BPE
from jaxdl.experiment import Best, Experiment
from jaxdl.models.seq2seq import Seq2SeqRNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.language import Perplexity
from jaxdl.tasks.seq2seq import Seq2Seq


def config() -> Experiment:
    return Experiment(
        task=Seq2Seq(model=Seq2SeqRNN(vocabulary=4_000, width=256, embedding=128, dropout=0.3)),
        data=ShakespeareReplies(tokenizer=BPE(vocabulary=4_000), longest=48),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=1.),
        evals={"test": Perplexity(split="test", every=428)},
        best=Best(metric="test/loss", mode="min"),
        steps=2_568, batch_size=64, log_every=107, save_every=428,  # six epochs
    )
