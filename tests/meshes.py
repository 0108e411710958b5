"""Prints, as JSON, losses and gradient norms of some experiments on one device and on meshes of
eight, in float64.

    JAX_ENABLE_X64=1 python -m tests.meshes STEPS

`test_parallel.py` runs it in a process of its own: the type is a choice for the whole process.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from jaxdl import files, parallel
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays
from jaxdl.experiment import Experiment, Mesh, Rule
from jaxdl.models.resnet import ResNet
from jaxdl.models.rnn import RNN
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.language import LanguageModel
from jaxdl.train import Program

MESHES = {"data": Mesh(data=8), "fsdp": Mesh(data=1, fsdp=8), "tensor": Mesh(data=4, tensor=2),
          "mixed": Mesh(data=2, fsdp=2, tensor=2), "pmap": Mesh(data=8)}


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Random tokens [B, 17] of a vocabulary of 64."""

    stand_in: ClassVar[None] = None

    def prepare(self) -> None:
        """Nothing to fetch."""

    def open(self, split: str) -> Arrays:
        tokens = np.random.default_rng(0).integers(64, size=(64, 17), dtype=np.int32)
        # Two tokens in three count, so that devices count differently many.
        following = np.where(tokens[:, 1:] % 3 > 0, tokens[:, 1:], -1)
        return Arrays(arrays={"tokens": tokens[:, :-1], "next": following})

    def fingerprint(self) -> str:
        return "random"


def transformer() -> Experiment:
    return Experiment(
        task=LanguageModel(model=Transformer(vocabulary=64, layers=1, width=128, heads=4, block=16,
                                         dropout=0.1)),
        data=Tokens(), optimizer=Adam(learning_rate=Constant(peak=1e-3)), steps=50, batch_size=16,
        rules=(Rule(path="(query_key_value|dense1)/kernel", axes=(None, "tensor")),
               Rule(path="(project|dense2)/kernel", axes=("tensor", None))))


def rnn() -> Experiment:
    model = RNN(vocabulary=64, width=32, embedding=16, dropout=0.1)
    task = LanguageModel(model=model, accumulate=2)
    return dataclasses.replace(transformer(), task=task, rules=())


def mlp() -> Experiment:
    experiment = files.build(files.load(files.experiments()["mlp_digits"]))
    return dataclasses.replace(experiment, rules=(Rule(path="dense1/kernel",
                                                       axes=(None, "tensor")),))


def resnet() -> Experiment:
    """`resnet_cifar` on its stand-in, with augmentation and batch norm, but smaller."""
    experiment = files.build(files.load(files.experiments()["resnet_cifar"]))
    task: Any = dataclasses.replace(
        experiment.task, model=ResNet(depth=8))  # type: ignore[type-var]
    augment = experiment.data.augment  # type: ignore[attr-defined]
    return dataclasses.replace(
        experiment, task=task, data=Digits(size=8, augment=augment), batch_size=16,
        rules=(Rule(path="conv1/kernel", axes=(None, None, None, "tensor")),))


def losses(experiment: Experiment, mesh: Mesh, parallel_mode: str, steps: int) -> list[float]:
    task: Any = dataclasses.replace(experiment.task, compute_dtype="float64")  # type: ignore
    experiment = dataclasses.replace(
        experiment, task=task, mesh=mesh, parallel=parallel_mode,  # type: ignore[arg-type]
        rules=experiment.rules if mesh.tensor > 1 else ())
    program = Program(experiment, experiment.data.open("train"),
                      parallel.arrange(experiment.mesh, experiment.rules))
    carry, found, before = program.init(program.knobs), [], 0.
    for i in range(steps):
        carry = program.advance(carry, [program.plan(i * experiment.batch_size, 1)[0]])
        total = float(carry.window.means["loss"].total)
        found += [(total - before) / experiment.batch_size, float(carry.window.last["grad_norm"])]
        before = total
    return found


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    steps = int(sys.argv[1])
    for name, build, meshes, count in (
            ("mlp", mlp, ("data", "tensor", "pmap"), steps),
            ("transformer", transformer, ("fsdp", "mixed", "pmap"), steps),
            ("rnn", rnn, ("pmap",), 5), ("resnet", resnet, ("mixed",), 10)):
        experiment = build()
        result = {"one": losses(experiment, Mesh(data=1), "jit", count)}
        for mesh in meshes:
            result[mesh] = losses(experiment, MESHES[mesh], "pmap" if mesh == "pmap" else "jit",
                                  count)
        print(json.dumps({name: result}), flush=True)


if __name__ == "__main__":
    main()
