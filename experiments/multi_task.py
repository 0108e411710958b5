"""Which two digits are on the picture? One trunk for both questions: 90 % test accuracy of each.

    python launch.py --experiment=multi_task
    python launch.py sweep --experiment=multi_task

Pictures of two overlapping digits of MNIST, as in Sener & Koltun (2018), section 5.1, but 2,000 of
them. A CNN whose convolutions serve two classifiers, the losses weighted by uncertainty (Kendall
et al. 2018). The sweep compares the four ways to balance the two with one network for each
question, which they must beat in the mean of both; three seeds each. No paper states these numbers.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.two_digits import TwoDigits
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.multi_task import MultiTask

ONE = Classification(model=CNN(channels=(16, 32, 32), dense=(64,), classes=10))


def together(balance: str, shared: str = "conv.*") -> MultiTask:
    """Of the two questions."""
    return MultiTask(tasks={"first": ONE, "second": ONE}, shared=(shared,),
                     fields={"second": {"label": "second"}},
                     balance=balance)  # type: ignore[arg-type]


def config() -> Experiment:
    return Experiment(
        task=together("uncertainty"),
        data=TwoDigits(data=MnistSample(), examples=2_000),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=500)},
        best=Best(metric="test/first_accuracy"),
        steps=500, batch_size=64, log_every=50,
    )


def sweep() -> list[Trial]:
    ways = [together(x) for x in ("fixed", "uncertainty", "gradnorm", "pcgrad")]
    # Two networks side by side, that share nothing but the biases of their first layer.
    return repeat([{"task": task} for task in (*ways, together("fixed", "conv1/bias"))], 3)
