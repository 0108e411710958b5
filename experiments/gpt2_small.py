"""GPT-2 small, 124,439,808 parameters: 2.85 nats for each piece of a word, where the data is.

    python launch.py --experiment=gpt2_small --data.path=DIR --data.tokenizer.path=FILE
    python launch.py preflight --experiment=gpt2_small --data.path=DIR --data.tokenizer.path=FILE

DIR holds the text as .txt files, FILE is the tokenizer.json that is published with GPT-2. The sizes
are those of Radford et al. (2019), table 2; the schedule is that of nanoGPT's README (Karpathy
2022, https://github.com/karpathy/nanoGPT), which comes to 2.85 nats on OpenWebText after 600,000
steps of 491,520 pieces on eight A100 in four days; GPT-2 as it is published has 3.12 there. That
text has nine billion pieces, and a `TextFile` can tell two billion apart, so here it is a part of
it, or another one; the recipe has not been trained. For 8 devices with 40 GB.
"""

from jaxdl.data.text import TextFile
from jaxdl.data.tokenizers import Saved
from jaxdl.experiment import Experiment
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import AdamW, Cosine, PathRule
from jaxdl.tasks.language import LanguageModel, Perplexity


def config() -> Experiment:
    return Experiment(
        task=LanguageModel(
            model=Transformer(vocabulary=50_257, layers=12, width=768, heads=12, block=1_024,
                              bias=True), compute_dtype="bfloat16", accumulate=4),
        data=TextFile(path="openwebtext", tokenizer=Saved(path="gpt2/tokenizer.json"),
                      block=1_024, train=0.9995),
        optimizer=AdamW(learning_rate=Cosine(peak=6e-4, end=0.1, warmup=2_000 / 600_000), b2=0.95,
                        weight_decay=0.1, clip=1.,
                        rules=(PathRule(path=".*/(scale|bias)", weight_decay=0.),)),
        evals={"test": Perplexity(split="test", every=1_000)},
        steps=600_000, batch_size=480, log_every=10, save_every=1_000,
    )
