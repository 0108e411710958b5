"""An LSTM writes Shakespeare, character by character: 1.6 nats a character on the test text.

    python launch.py --experiment=char_rnn
    python launch.py predict --experiment=RUN_DIR --prompt="ROMEO:"
    python launch.py sweep --experiment=char_rnn

Karpathy (2015), http://karpathy.github.io/2015/05/21/rnn-effectiveness; one layer here. All of
Shakespeare (84 different characters) is 4.6 million characters to train on and the last tenth to
test, of which the first 100,000 are measured: a 6-gram model with Witten-Bell smoothing gives them
1.656 nats each. The sweep trains the same network on the novels of Jane Austen and on the King
James Bible, where that model comes to 1.269 and 1.304; it must be better on each. No paper has
these splits; `test/loss` is the number.
"""

from jaxdl.data.corpora import Austen, Bible, Shakespeare
from jaxdl.experiment import Best, Experiment
from jaxdl.models.rnn import RNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial
from jaxdl.tasks.language import LanguageModel, Perplexity


def config() -> Experiment:
    return Experiment(
        task=LanguageModel(model=RNN(vocabulary=84, width=256, embedding=64)),
        data=Shakespeare(block=128, test_characters=100_000),
        optimizer=Adam(learning_rate=Cosine(peak=4e-3, warmup=0.02), clip=1.),
        evals={"test": Perplexity(split="test", every=1_000)},
        best=Best(metric="test/loss", mode="min"),
        steps=3_500, batch_size=64, log_every=100, save_every=500,
    )


def sweep() -> list[Trial]:
    return [{"data": data} for data in (
        Shakespeare(block=128, test_characters=100_000), Austen(block=128, test_characters=100_000),
        Bible(block=128, test_characters=100_000))]
