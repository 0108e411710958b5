"""A CNN whose weights are -1, 0 or 1 times a scale: 97 % test accuracy, trained with the rounding.

    python launch.py --experiment=quantization
    python launch.py sweep --experiment=quantization

Two bits for each weight of a small CNN on 8,000 of MNIST's digits. The network is rounded in each
step of training (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3), and should beat
the same network rounded after training, at as many bits. "rounded" is the accuracy after rounding,
whichever way it was trained, and the bytes of the weights. The sweep has 2, 3 and 4 bits, and
inputs of layers in 4 bits beside. No paper states these numbers.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.quantize import Quantized
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.quantized import QuantizationAware

PLAIN = Classification(model=CNN(channels=(16, 32), dense=(64,), classes=10))


def config() -> Experiment:
    return Experiment(
        task=QuantizationAware(task=PLAIN, bits=2),
        data=MnistSample(),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=600),
               "rounded": Quantized(split="test", bits=2, every=600)},
        best=Best(metric="rounded/accuracy"),
        steps=600, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    trials: list[Trial] = [
        {"task": task, "evals.rounded.bits": bits} for bits in (2, 3, 4)
        for task in (QuantizationAware(task=PLAIN, bits=bits), PLAIN)]
    inputs = QuantizationAware(task=PLAIN, bits=2, activation_bits=4)
    return repeat([*trials, {"task": inputs, "evals.rounded.bits": 2}], 3)
