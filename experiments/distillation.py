"""A small network learns what a larger one knows: 94 % test accuracy from a thousand digits.

    python launch.py --experiment=distillation_teacher --workdir=runs/distillation_teacher
    python launch.py --experiment=distillation
    python launch.py sweep --experiment=distillation

The student is an MLP with one layer of 64, the teacher a ResNet that has seen all 8,000 training
digits (Hinton et al. 2015, section 3). The student sees 1,000 of them, shifted by up to two pixels,
with soft targets at temperature 4. The sweep compares that with the same student alone, which it
must beat, and with other temperatures; three seeds each. No paper states these numbers.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, InitFrom
from jaxdl.models.mlp import MLP
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.distillation import Distillation

STUDENT = Classification(model=MLP(widths=(64,), classes=10))
TEACHER = InitFrom(path="runs/distillation_teacher",
                   rename=(("^params/", "params/teacher/"),
                           ("^mutable/batch_stats/", "mutable/batch_stats/teacher/")),
                   fresh=("(params|mutable/batch_stats)/(?!teacher/).*",))


def taught(temperature: float) -> Distillation:
    return Distillation(task=STUDENT, teacher=ResNet(depth=8, classes=10), temperature=temperature,
                        weight=0.9)


def config() -> Experiment:
    return Experiment(
        task=taught(4.),
        data=MnistSample(validation=7_000, augment=(PadCrop(pad=2),)),  # of 8,000
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        init_from=TEACHER,
        evals={"test": Evaluate(split="test", every=4_000)},
        best=Best(metric="test/accuracy"),
        steps=4_000, batch_size=64, log_every=500,
    )


def sweep() -> list[Trial]:
    alone: Trial = {"task": STUDENT, "init_from": InitFrom()}
    return repeat([alone, *({"task": taught(t), "init_from": TEACHER} for t in (1., 4., 10.))], 3)
