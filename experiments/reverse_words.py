"""Words backwards, letter by letter: 99 % of the words of the test set without a mistake.

    python launch.py --experiment=reverse_words
    python launch.py predict --experiment=RUN_DIR --prompt=jerusalem --temperature=0
    python launch.py sweep --experiment=reverse_words

A task that can be learned exactly, so that a network that does not is known to be wrong: 11,169
words of the King James Bible to train on, 1,241 others to test. It is what attention was made for;
the sweep compares the recurrent network with Luong's attention (2015), with Bahdanau's (2015) and
without, and the Transformer. `test/exact` is the number, an accuracy of whole words.
"""

from jaxdl.data.pairs import ReversedWords
from jaxdl.data.tokenizers import Characters
from jaxdl.experiment import Best, Experiment
from jaxdl.models.encoder_decoder import EncoderDecoder
from jaxdl.models.seq2seq import Seq2SeqRNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial
from jaxdl.tasks.seq2seq import Seq2Seq, Translation

LUONG = Seq2SeqRNN(vocabulary=28, width=128, embedding=32)


def config() -> Experiment:
    return Experiment(
        task=Seq2Seq(model=LUONG),
        data=ReversedWords(tokenizer=Characters(), longest=16),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3, warmup=0.05), clip=1.),
        evals={"test": Translation(every=500, tokens=16, scores=("exact",), batch_size=256)},
        best=Best(metric="test/exact"),
        steps=2_000, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    transformer = EncoderDecoder(vocabulary=28, layers=2, width=64, heads=4, block=16)
    return [{"task": Seq2Seq(model=model)} for model in (
        LUONG, LUONG.clone(attention="bahdanau"), LUONG.clone(attention=None), transformer)]
