"""What helps with a thousand digits? Twelve regularisers: 96 % test accuracy with the best of them.

    python launch.py --experiment=regularisation
    python launch.py sweep --experiment=regularisation

A small CNN on 1,000 of MNIST's digits, on which it overfits: after 25 epochs it knows them by
heart. It has three convolutions; with two of them the best came to 95.5 %. One trial has no
regulariser, each other one has one, with a usual strength; three seeds each. Stochastic depth needs
residual branches, so it is compared on a small Mixer. A method helps if its mean is higher than
that without by more than their deviations. No paper states these numbers.
"""

from typing import Any

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import Cutout, Mixup
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.models.mixer import Mixer
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.sharpness import SAM

RATE = Cosine(peak=2e-3, warmup=0.05)


def task(**options: Any) -> Classification:
    return Classification(model=CNN(channels=(16, 32, 64), dense=(64,), classes=10, **options))


def config() -> Experiment:
    return Experiment(
        task=task(),
        data=MnistSample(validation=7_000),  # of 8,000
        optimizer=Adam(learning_rate=RATE),
        evals={"test": Evaluate(split="test", every=400)},
        best=Best(metric="test/accuracy"),
        steps=400, batch_size=64, log_every=50,
    )


def sweep() -> list[Trial]:
    mixer = Mixer(patch=7, width=48, tokens=24, layers=4, classes=10)
    data = MnistSample(validation=7_000)
    trials: list[Trial] = [
        {"task": task()},
        {"task": task(), "optimizer": Adam(learning_rate=RATE, l2=1e-3)},
        {"task": task(), "optimizer": Adam(learning_rate=RATE, weight_decay=0.1)},
        {"task": task(dropout=0.3)},
        {"task": task(batch_norm=True)},
        {"task": Classification(model=task().model, label_smoothing=0.1)},
        {"task": Classification(model=task().model, ema=0.98)},
        {"task": SWA(task=task(), start=300)},
        {"task": SAM(task=task(), radius=0.05)},
        {"task": DeepSupervision(task=task(), layers=("conv1", "conv2"))},
        {"task": task(), "data": MnistSample(validation=7_000, augment=(Mixup(alpha=0.2),))},
        {"task": task(), "data": MnistSample(validation=7_000, augment=(Cutout(size=10),))},
        {"task": Classification(model=mixer)},
        {"task": Classification(model=mixer.clone(stochastic_depth=0.2))},
    ]
    return repeat([{"data": data, **trial} for trial in trials], 3)
