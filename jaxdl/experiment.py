"""The value that defines a run. Everything in it is recorded, compared and swept by path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxdl.config import Between, Regex, Size
from jaxdl.data.source import Data
from jaxdl.evaluate import Evaluator
from jaxdl.optimizer import Optimizer
from jaxdl.task import Task


@dataclass(frozen=True, kw_only=True)
class Best:
    """Which metric ranks the checkpoints, and when to stop early.

    Attributes:
      metric: "EVALUATOR/NAME", as in metrics.jsonl; None keeps no best checkpoint.
      mode: whether more or less is better.
      patience: evaluations without improvement before training stops; None never stops early.
    """

    metric: str | None = None
    mode: Literal["max", "min"] = "max"
    patience: Size | None = None


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Parameters to start from, out of another run's checkpoint or a file of published weights.

    Attributes:
      path: a run directory, or a safetensors or .pth file with the names of a library that the
        model knows; None starts afresh.
      step: which of its checkpoints: "best", "last" or a step number.
      rename: (regex, replacement) pairs, applied in order to each stored path such as
        "params/Dense_0/kernel"; a path renamed to "" is dropped.
      fresh: regexes of paths of this model that keep their fresh initial values (a new head);
        every other one must be found in the checkpoint.
      more: a safetensors file with further parameters by their paths here, which come after those
        of `path`: adapters, as `export --format=safetensors --only=REGEX` writes them.
    """

    path: str | None = None
    step: str = "last"
    rename: tuple[tuple[Regex, str], ...] = ()
    fresh: tuple[Regex, ...] = ()
    more: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices are arranged; the product is the number of devices used.

    Attributes:
      data: devices that split the batch and copy the parameters; -1: all that are left.
      fsdp: devices that split both the batch and the parameters.
      tensor: devices that split parameters by `rules`.
    """

    data: int = -1
    fsdp: Size = 1
    tensor: Size = 1


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Places the parameters whose path matches on the mesh.

    Attributes:
      path: regex that the path, or its end from some "/" on, matches: "mlp/kernel"; optimizer
        statistics and averages of a parameter so follow it.
      axes: for each dimension of the array the mesh axis that splits it, or None.
    """

    path: Regex
    axes: tuple[Literal["data", "fsdp", "tensor"] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that defines a run.

    Attributes:
      task: what is learned.
      data: the data set; training reads its "train" split.
      optimizer: one optimizer, or a mapping from the names that the task asks for.
      evals: evaluators by name; a metric is logged as "NAME/METRIC".
      steps: optimizer steps; schedules are in fractions of it.
      batch_size: examples in a step, over all devices.
      seed: of the initial parameters, the order of the data, augmentation and dropout.
      best: which metric ranks checkpoints, and early stopping.
      init_from: another run's parameters to start from.
      log_every: steps between two lines of the training log.
      save_every: steps between two checkpoints.
      keep: how many of the newest checkpoints stay, besides the best.
      nonfinite: what a step with a NaN or infinite loss or gradient does: "stop" ends the run, at
        the newest checkpoint before it; "skip" drops its update and goes on.
      mesh: the arrangement of the devices.
      rules: which parameters are split over the mesh; the first that matches an array and has as
        many axes counts.
      parallel: "jit" compiles one program for the whole mesh, which computes what one device would;
        "pmap" gives each device a program of its own on its part of the batch: batch norm
        normalises by that part, gradients and statistics are averaged over the devices.
    """

    task: Task
    data: Data
    optimizer: Optimizer | Mapping[str, Optimizer]
    evals: Mapping[str, Evaluator] = field(default_factory=dict)
    steps: Size
    batch_size: Size
    seed: Annotated[int, Between(0, 2 ** 32 - 1)] = 0
    best: Best = Best()
    init_from: InitFrom = InitFrom()
    log_every: Size = 50
    save_every: Size = 1_000
    keep: Size = 2
    nonfinite: Literal["stop", "skip"] = "stop"
    mesh: Mesh = Mesh()
    rules: tuple[Rule, ...] = ()
    parallel: Literal["jit", "pmap"] = "jit"

    def transformations(self) -> Any:
        """The optimizer(s) as Optax transformations: the `tx` of `Task.init` and `Task.step`."""
        updates = getattr(self.task, "updates_per_step", lambda name: 1)
        if isinstance(self.optimizer, Mapping):
            return {n: o.build(self.steps * updates(n)) for n, o in self.optimizer.items()}
        return self.optimizer.build(self.steps * updates(""))
