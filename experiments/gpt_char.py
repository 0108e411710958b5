"""A Transformer writes Shakespeare, character by character: 1.6 nats a character on the test text.

    python launch.py --experiment=gpt_char
    python launch.py predict --experiment=RUN_DIR --prompt="ROMEO:"
    python launch.py sweep --experiment=gpt_char

The character model of nanoGPT (Karpathy 2022, https://github.com/karpathy/nanoGPT, README) with the
sizes that it gives for a CPU, 4 blocks of width 128 with 4 heads, without dropout, but trained for
longer: 64 characters at once, batches of 64, 6,000 steps. The text is all of Shakespeare, of whose
last tenth the first 100,000 characters are measured: a 6-gram model gives them 1.656 nats each. At
nanoGPT's own CPU setting, `--steps=2000 --batch_size=12`, it shall be no worse than nanoGPT on this
text (`python benchmarks/nanogpt.py`). The 1.88 nats of the README, and the 1.4697 of the network of
10.7 million parameters on a GPU, are for the last tenth of the smaller "tiny Shakespeare". The
sweep adds Austen's novels and the Bible (6-gram: 1.269 and 1.304). `test/loss` is the number.
"""

from jaxdl.data.corpora import Austen, Bible, Shakespeare
from jaxdl.experiment import Best, Experiment
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import AdamW, Cosine, PathRule
from jaxdl.sweep import Trial
from jaxdl.tasks.language import LanguageModel, Perplexity


def config() -> Experiment:
    return Experiment(
        task=LanguageModel(model=Transformer(vocabulary=84, layers=4, width=128, heads=4,
                                             block=64)),
        data=Shakespeare(block=64, test_characters=100_000),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, end=0.1, warmup=0.05), b2=0.99,
                        weight_decay=0.1, clip=1.,
                        rules=(PathRule(path=".*/scale", weight_decay=0.),)),
        evals={"test": Perplexity(split="test", every=1_000)},
        best=Best(metric="test/loss", mode="min"),
        steps=6_000, batch_size=64, log_every=100, save_every=500,
    )


def sweep() -> list[Trial]:
    return [{"data": data} for data in (
        Shakespeare(block=64, test_characters=100_000), Austen(block=64, test_characters=100_000),
        Bible(block=64, test_characters=100_000))]
