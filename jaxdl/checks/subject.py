"""What a check looks at: an experiment with fewer steps and a smaller batch, and what all checks
need of it, made once.

The model's structure stays as declared. Everything runs on one device, on examples that are read
once and kept in memory. A check returns a `Finding`.

Of a task the checks use what it has. `loss` (every LossTask) opens most of them. Further, each of
these may be there:

    target_fields   names of the batch's fields that are to be predicted, () for none (else:
                    "label", "next", "target"); all others but "index" and "mask" are inputs
    logits          (state, batch) -> [B, K] or [B, T, V]
    causal          whether the output at t must not depend on inputs after t
    initial_loss    (batch) -> the loss that a fresh model should have
    any_batch       whether the recipe is the same one with a smaller batch (else: True)
    not_applicable  name of a check -> the reason why it does not apply; its `model` may say so too,
                    and the experiment's data
    checks          name -> function of a Subject: checks of its own
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import config, cost, parallel
from jaxdl.data.source import Arrays, Source, assemble
from jaxdl.experiment import Experiment, Mesh
from jaxdl.init_from import overlay
from jaxdl.task import LossTask
from jaxdl.train import SHORT, Carry, Program, splits

Array = jax.Array
Verdict = Literal["pass", "warn", "FAIL", "-"]
TRAIN, TEST = 4_096, 512  # examples that are read, where they are not in memory anyway
EXAMPLES, LEAST, LONG = 32, 4, 1e11  # of a batch; operations of a step that a check can afford
NO_LOSS = "the task has no loss() of its own"
OFF = ("dropout", "smoothing", "stochastic_depth")  # floats that regularise: zero turns them off


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
      verdict: "-" if it does not apply.
      measured: in a few words.
      expected: in a few words.
      look_at: where the mistake may be, or why the check does not apply.
    """

    verdict: Verdict
    measured: str = ""
    expected: str = ""
    look_at: str = ""


def skipped(reason: str) -> Finding:
    return Finding("-", look_at=reason)


def judged(wrong: str, doubtful: str = "", *, measured: str, expected: str,
           look_at: str = "") -> Finding:
    """FAIL with what is wrong, else warn with what is doubtful, else pass."""
    verdict: Verdict = "FAIL" if wrong else "warn" if doubtful else "pass"
    return Finding(verdict, wrong or doubtful or measured, expected, look_at if verdict != "pass"
                   else "")


class Subject:
    """An experiment that is checked.

    Args:
      experiment: with data that is here.
      steps: of a training run of a check, at most; None: some seconds of them.
      batch_size: of a check, at most; None: 32, or fewer where their step takes seconds.

    Attributes:
      declared: the experiment as it was.
      experiment: with fewer steps, a smaller batch, and one device.
      curves: what checks have drawn for the page: name -> (title, x, ys by name).
    """

    def __init__(self, experiment: Experiment, *, steps: int | None = None,
                 batch_size: int | None = None) -> None:
        self.declared = self.experiment = experiment
        self.devices = parallel.arrange(Mesh(data=1), devices=jax.devices()[:1])
        self.opened = splits(experiment)
        # By the identity of a source, size and key; with the source, which so stays what it was.
        self._batches: dict[tuple[int, int, int], tuple[Source, dict[str, Array]]] = {}
        self.curves: dict[str, tuple[str, Sequence[float], Mapping[str, Sequence[float]]]] = {}
        most = EXAMPLES if getattr(experiment.task, "any_batch", True) else experiment.batch_size
        batch = min(experiment.batch_size, batch_size or most)
        operations = self.operations(batch)
        if steps is None:
            steps = 300 if operations < SHORT else 100
        if batch_size is None and most == EXAMPLES and operations > LONG:
            batch = max(min(batch, LEAST), int(batch * LONG / operations))
        steps = min(experiment.steps, steps)
        # A schedule is in fractions of the steps: this is the same recipe, shorter.
        self.experiment = dataclasses.replace(
            experiment, steps=steps, batch_size=batch, mesh=Mesh(data=1), rules=(),
            parallel="jit", log_every=steps, save_every=steps, nonfinite="stop")

    def operations(self, batch_size: int) -> float:
        """Floating-point operations of a step; 0 if it cannot be traced: why, each check tells."""
        tx, example = self.tx, self.batch(self.train, batch_size)
        try:
            state = jax.eval_shape(lambda key: self.task.init(key, example, tx), jax.random.key(0))
            step = jax.make_jaxpr(lambda state, x: self.task.step(state, x, tx))(state, example)
        except Exception:  # The task's own code: any.
            return 0.
        return cost.flops(step.jaxpr)

    # The data.

    @property
    def task(self) -> Any:
        return self.experiment.task

    @functools.cached_property
    def others(self) -> dict[str, Source]:
        """The splits of the evaluators but "train"."""
        names = [getattr(e, "split", None) for e in self.experiment.evals.values()]
        return {n: self.kept(n, TEST) for n in names if isinstance(n, str) and n != "train"}

    @functools.cached_property
    def train(self) -> Source:
        return self.kept("train", TRAIN)

    def kept(self, split: str, most: int) -> Source:
        """A split in memory: all of it if it is there, else some of its examples."""
        source = self.opened(split)
        if source.arrays is not None:
            return source
        arrays = source.read(_spread(source.size, most))
        return Arrays(arrays=arrays, transforms=getattr(source, "transforms", ()))

    @functools.cached_property
    def plain(self) -> Source:
        """The training examples as evaluation would see them: without augmentation."""
        if not self.others:
            return self.train
        train: Any = self.train
        transforms = getattr(next(iter(self.others.values())), "transforms", ())
        if isinstance(train, Arrays):  # with an order of its own, perhaps
            return dataclasses.replace(train, transforms=transforms)
        return Arrays(arrays=train.arrays, transforms=transforms)

    def batch(self, source: Source, size: int | None = None, key: int = 0) -> dict[str, Array]:
        """Examples of a split, transformed: of the training data those of its first batches."""
        size = min(size or self.experiment.batch_size, source.size)
        known = id(source), size, key
        if known not in self._batches:
            index = self.ids(source, size)
            made = self.compiled(functools.partial(assemble, source))
            self._batches[known] = source, made(
                source.arrays, {"index": index, "mask": np.ones(size, np.float32)},
                jax.random.key(key))
        return self._batches[known][1]

    def ids(self, source: Source, size: int) -> np.ndarray:
        """The examples of a batch: of the training data those that training begins with."""
        if isinstance(source, Arrays) and (source is self.train or source is self.plain):
            return source.index(0, 0, max(size, self.declared.batch_size))[:size]
        return _spread(source.size, size)

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """The fields that are to be predicted."""
        found = getattr(self.task, "target_fields", None)
        fields = self.train.arrays or {}
        return tuple((n for n in ("label", "next", "target") if n in fields)
                     if found is None else found)

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """The fields that a prediction is made from."""
        return tuple(n for n in self.batch(self.train, 2)
                     if n not in (*self.targets, "index", "mask"))

    # The model.

    @property
    def has_loss(self) -> bool:
        return isinstance(self.task, LossTask)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`jax.jit` for what runs a few times: to optimise it would take longer."""
        options = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
        return jax.jit(function, compiler_options=options
                       if jax.default_backend() == "cpu" else None)

    @functools.cached_property
    def tx(self) -> Any:
        return self.experiment.transformations()

    @functools.cached_property
    def fresh(self) -> Any:
        """The state before the first step."""
        return self.begun(self.compiled(lambda key, batch: self.task.init(key, batch, self.tx))(
            jax.random.fold_in(jax.random.key(self.experiment.seed), 0), self.batch(self.train)))

    def begun(self, state: Any) -> Any:
        """A state with the parameters that the experiment starts from, if not its own."""
        init = self.experiment.init_from
        return state if init.path is None else overlay(state, init, self.task)[0]

    @functools.cached_property
    def warm(self) -> Any:
        """The state after a few steps: a parameter may start where its neighbours get no gradient,
        as the zero scale that ends a residual block."""
        step = self.compiled(lambda state, batch: self.task.step(state, batch, self.tx)[0])
        batch, state = self.batch(self.train), self.fresh
        for _ in range(4):
            state = step(state, batch)
        return state

    def loss(self, params: Any, state: Any, batch: Any, *, train: bool, key: Any = None,
             task: Any = None) -> tuple[Any, Any]:
        """(mean loss, its parts) of a LossTask."""
        from jaxdl.task import merge

        key = jax.random.key(1) if key is None else key
        mean, aux = (task or self.task).loss(
            {"params": merge(params, state.frozen), **state.mutable}, batch, key, train=train)
        penalty = 0. if aux.penalty is None else aux.penalty
        return mean.total / jnp.where(mean.count > 0, mean.count, 1) + penalty, (mean, aux)

    @functools.cached_property
    def gradients(self) -> Any:
        """Of the loss with respect to the parameters, after a few steps, on a batch of the
        training data."""
        gradient = self.compiled(jax.grad(lambda p, state, batch: self.loss(
            p, state, batch, train=True)[0]))
        batch = self.batch(self.train, 2 * self.experiment.batch_size)
        return gradient(self.warm.params, self.warm, batch)

    # Training.

    @functools.cached_property
    def quiet(self) -> Any:
        """Without what regularises: its floats are zero, which no structure depends on."""
        changes = {path: 0. for path, leaf in config.leaves(self.experiment)
                   if type(leaf.value) is float and path.startswith("task.")
                   and any(word in path.rpartition(".")[2] for word in OFF)}
        return config.replace(self.experiment, changes)

    @functools.cached_property
    def program(self) -> Program:
        """The step of `quiet` on `plain` data: one compilation for all that is trained."""
        return Program(self.quiet, self.plain, self.devices)

    @functools.cached_property
    def rates(self) -> tuple[str, ...]:
        """Paths of the learning rates."""
        return tuple(path for path, _ in config.leaves(self.experiment)
                     if path.startswith("optimizer") and path.endswith("learning_rate.peak"))

    def with_rate(self, factor: float) -> Program:
        """The same program with all learning rates multiplied."""
        return self.program.of(config.replace(self.quiet, {
            p: float(config.get(self.quiet, p) * factor) for p in self.rates}), self.plain)

    def trained(self, *, steps: int | None = None, program: Program | None = None,
                arrays: Mapping[str, Any] | None = None, index: Any = None,
                watch: Callable[[int, Carry], None] | None = None) -> Carry:
        """Trains from the start.

        Args:
          steps: None for all of the experiment.
          program: None for `self.program`.
          arrays: other data of the same shapes.
          index: the same examples in each step, in place of the training order.
          watch: called after each step.
        """
        program = copy.copy(program or self.program)
        if arrays is not None:
            program.arrays = self.devices.replicate(arrays)
        steps = steps or self.experiment.steps
        carry, plan = program.init(program.knobs), program.plan(0, steps)
        carry = Carry(self.begun(carry.state), carry.window)
        at = 0
        while at < steps:
            several = 1 if watch else min(program.fused, steps - at)
            batches: list[Any] = [dict(plan[at + i]) for i in range(several)]
            if index is not None:
                batches = [{**b, "index": index} for b in batches]
            carry = program.advance(carry, batches)
            at += several
            if watch is not None:
                watch(at, carry)
                carry = Carry(carry.state, program.reset(carry.window))
        return carry

    @functools.cached_property
    def measure(self) -> Callable[[Any, Any], Mapping[str, Any]]:
        return self.compiled(lambda state, batch: self.task.evaluate(state, batch))

    def evaluated(self, state: Any, source: Source, arrays: Mapping[str, Any] | None = None
                  ) -> dict[str, float]:
        """The task's metrics on the first examples of a split, with other arrays if given."""
        if arrays is not None:
            source = Arrays(arrays=arrays, transforms=getattr(source, "transforms", ()))
        return {name: float(mean.total / mean.count)
                for name, mean in self.measure(state, self.batch(source, TEST)).items()}

    def zeroed(self, source: Source) -> dict[str, Any]:
        """The arrays with each input the same in all examples."""
        return {n: np.zeros_like(x) if n in self.inputs else x
                for n, x in (source.arrays or {}).items()}

    @functools.cached_property
    def test(self) -> Source:
        """What a trained model is measured on: a held-out split if there is one."""
        return next(iter(self.others.values()), self.plain)

    @functools.cached_property
    def learned(self) -> Carry:
        """After training on the data as it is."""
        return self.trained()

    @functools.cached_property
    def real(self) -> dict[str, float]:
        """Metrics of that."""
        return self.evaluated(self.learned.state, self.test)

    @functools.cached_property
    def blind(self) -> dict[str, float]:
        """Metrics after training on inputs that say nothing."""
        carry = self.trained(arrays=self.zeroed(self.plain))
        return self.evaluated(carry.state, self.test, self.zeroed(self.test))


def _spread(size: int, most: int) -> np.ndarray:
    """Ids of examples from all of a split, which may be in the order of its classes."""
    return np.linspace(0, size - 1, min(most, size)).astype(np.int32)


def window_loss(carry: Carry) -> float:
    """The loss of the newest window."""
    mean = carry.window.means.get("loss")
    return math.nan if mean is None else float(mean.total) / max(float(mean.count), 1.)


def float_leaves(experiment: Experiment, word: str) -> Iterator[tuple[str, float]]:
    """Floats of the task whose name holds a word."""
    for path, leaf in config.leaves(experiment):
        if type(leaf.value) is float and path.startswith("task.") and (
                word in path.rpartition(".")[2]):
            yield path, leaf.value
