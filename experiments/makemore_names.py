"""New names like those of the Bible: 2.1 nats a letter on names that are held out.

    python launch.py --experiment=makemore_names
    python launch.py predict --experiment=RUN_DIR --prompt=A --samples=20
    python launch.py sweep --experiment=makemore_names

After Karpathy's makemore (2022, https://github.com/karpathy/makemore), on 3,203 names of the King
James Bible in place of 32,033 of today, a tenth of them held out. Counted pairs of letters give
these 2.32 nats a letter, triples 2.22, fours 2.35 (with the best additive smoothing). The sweep
compares an MLP over the last letters (Bengio et al. 2003), an LSTM, a GRU and a Transformer, three
seeds each; all must be better than triples. No paper has this split; `test/loss` is the number.
"""

from jaxdl.data.corpora import BibleNames
from jaxdl.experiment import Best, Experiment
from jaxdl.models.ngram import NeuralNgram
from jaxdl.models.rnn import RNN
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import AdamW, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.language import LanguageModel, Perplexity

LSTM = RNN(vocabulary=52, width=128, embedding=32, dropout=0.3)


def config() -> Experiment:
    return Experiment(
        task=LanguageModel(model=LSTM),
        data=BibleNames(),
        optimizer=AdamW(learning_rate=Cosine(peak=5e-3, warmup=0.05), weight_decay=0.1),
        evals={"test": Perplexity(split="test", every=100)},
        best=Best(metric="test/loss", mode="min"),
        steps=800, batch_size=64, log_every=50,
    )


def sweep() -> list[Trial]:
    return repeat([{"task": LanguageModel(model=model)} for model in (
        NeuralNgram(vocabulary=52, context=4, embedding=24, hidden=128, dropout=0.3), LSTM,
        LSTM.clone(cell="gru"),
        Transformer(vocabulary=52, layers=2, width=64, heads=4, block=16, dropout=0.2))], 3)
