"""The Bible from English into Spanish by a recurrent network with attention: 18 BLEU.

    python launch.py --experiment=translate_attention
    python launch.py predict --experiment=RUN_DIR --prompt="And God said, Let it be." --beams=4
    python launch.py sweep --experiment=translate_attention

A bidirectional GRU reads, another one writes and looks back at each of its words: Luong et al.
(2015), https://arxiv.org/abs/1508.04025, section 3.1, "general". 31,084 verses (King James, 1769;
Reina-Valera, 1909), 1,555 of them to test, of which the first 500 are measured by sacreBLEU, with
greedy decoding. The source as it stands has 0.25 BLEU, the best word for each word by IBM's first
model 13.5 (`python benchmarks/translation_baselines.py`); both must be beaten. The sweep adds the
same network without attention, which it must beat too, and with Bahdanau's. No paper has this
split. `test/bleu` is the number; the accuracy of single tokens is logged beside it.
"""

from jaxdl.data.pairs import BibleVerses
from jaxdl.data.tokenizers import BPE
from jaxdl.experiment import Best, Experiment
from jaxdl.models.seq2seq import Seq2SeqRNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial
from jaxdl.tasks.seq2seq import Seq2Seq, Translation

LUONG = Seq2SeqRNN(vocabulary=4_000, width=256, embedding=128, dropout=0.2)


def config() -> Experiment:
    return Experiment(
        task=Seq2Seq(model=LUONG),
        data=BibleVerses(tokenizer=BPE(vocabulary=4_000), longest=64, test_pairs=500),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=1.),
        evals={"test": Translation(every=3_000, tokens=80, batch_size=100)},
        best=Best(metric="test/bleu"),
        steps=3_000, batch_size=64, log_every=100, save_every=500,
    )


def sweep() -> list[Trial]:
    return [{"task": Seq2Seq(model=model)} for model in (
        LUONG, LUONG.clone(attention=None), LUONG.clone(attention="bahdanau"))]
