"""Trials trained together: one compiled step for experiments that differ in floats and seeds.

Every array of the state has a first axis that counts trials, and `vmap` maps the same step that
each alone would run. Metrics, early stopping, best values and checkpoints are kept apart: each
trial has a run directory of its own, as if it had been trained alone. A trial that ends early, or
is not finite any more, is left out as soon as half are.
"""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import config, display, train
from jaxdl.checkpoint import Checkpoints
from jaxdl.clock import Clock
from jaxdl.data.source import Source
from jaxdl.display import console
from jaxdl.errors import RunError
from jaxdl.evaluate import Context, Evaluate, total
from jaxdl.experiment import Experiment
from jaxdl.init_from import overlay
from jaxdl.nonfinite import NonFinite, finite_or_raise
from jaxdl.process import Signals, Watchdog
from jaxdl.train import Carry, Program, Progress, Window

Opened = Callable[[str], Source]
WRITERS = 16  # trials whose last checkpoints are written at once


# Which trials can be trained together.


def free(experiment: Experiment, opened: Opened) -> set[str]:
    """The paths of the leaves that are data for the compiled step: scalar floats of the task, the
    optimizer and the transforms, and the seed where the order of examples costs no reading."""
    splits = ["train", *(split for e in experiment.evals.values()
                         if isinstance(split := getattr(e, "split", None), str))]
    transforms = [getattr(opened(split), "transforms", ()) for split in splits]
    found = {"seed"} if opened("train").arrays is not None else set()
    for path, leaf in config.leaves(experiment):
        if type(leaf.value) is not float:
            continue
        root, _, rest = path.partition(".")
        # A float of the data counts if it is one of a transform of training alone: another one
        # may have changed what the arrays hold.
        node = config.get(experiment, path.rpartition(".")[0]) if rest else None
        if root in ("task", "optimizer") or (
                root == "data" and any(node is t for t in transforms[0])
                and not any(node is t for other in transforms[1:] for t in other)):
            found.add(path)
    return found


def structure(experiment: Experiment, free: set[str]) -> str:
    """What two experiments have in common if they differ in these leaves alone."""
    def walk(node: Any, path: str) -> Any:
        if not config.is_node(node):
            data = path in free and (type(node) is float or path == "seed")
            return {"data": True} if data else config.to_json(node)
        kind = type(node)
        return [f"{kind.__module__}:{kind.__qualname__}", {
            name: walk(child, f"{path}.{name}" if path else name)
            for name, child in config.children(node).items()}]

    return json.dumps(walk(experiment, ""))


# Training.


@dataclasses.dataclass
class Member:
    """One of the trials that are trained together.

    Attributes:
      number: of the trial.
      experiment: what it trains.
      opened: its data.
      run: its open run directory; one that has ended before has none.
      watcher: is told of its numbers.
      ended: called when it has ended and its checkpoints are on disk, with why it failed or "".
      progress: what it has come to.
      best: the same when it was best.
      failed: why, or "".
      over: whether it has ended.
    """

    number: int
    experiment: Experiment
    opened: Opened
    run: Any  # a record.Run
    watcher: display.Watcher
    ended: Callable[[str], None]
    progress: Progress = dataclasses.field(default_factory=Progress)
    best: Progress = dataclasses.field(default_factory=Progress)
    failed: str = ""
    over: bool = False


def fit(members: Sequence[Member], folder: Path, program: Program, signals: Signals, *,
        sinks: tuple[str, ...] = (), watchdog: Watchdog | None = None) -> None:
    """Trains all to their ends, from the newest checkpoint of the group.

    Args:
      members: those of `program.trials`, in the same order.
      folder: of the group, for what all have together.
      program: compiled for all of them.
      signals: to leave on.
      sinks: names of further sinks of each trial.
      watchdog: is told of progress.

    Raises:
      Preempted: the process was asked to leave; everything is saved.
      RunError: a save failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(Checkpoints(folder / "checkpoints", 2)) as checkpoints:
            Together(members, folder, program, checkpoints, signals, Clock(watchdog))(sinks)
    except OSError as error:
        raise RunError(f"{error.filename or folder}: {error.strerror}; what is committed in "
                       f"{folder} is intact.") from error


class Together(train.Fit):
    """`train.Fit` of many: where that has one trial, this has a list of them."""

    def __init__(self, members: Sequence[Member], folder: Path, program: Program,
                 checkpoints: Checkpoints, signals: Signals, clock: Clock) -> None:
        first = next(member for member in members if not member.over)
        super().__init__(first.experiment, first.run, program, checkpoints, first.opened, signals,
                         clock, watcher=Nobody())
        self.members, self.folder = list(members), folder
        self.rows = np.arange(len(members))  # of the members that the program trains
        self.all_finite = jax.jit(jax.vmap(train._all_finite))
        self.best: Any = None  # the state of each member when it was best
        self.left: tuple[int, Carry] = 0, None  # type: ignore[assignment]  # where the loop ended
        self.target = program.target  # of all members, whether they still train or not

    def active(self) -> list[tuple[int, Member]]:
        """(its place in the carry, member) of those that have not ended."""
        return [(i, self.members[row]) for i, row in enumerate(self.rows)
                if not self.members[row].over]

    def begin(self) -> tuple[int, Carry]:
        self.clock.enter("restore", 0)
        for line in self.checkpoints.set_aside:
            console.print(f"warning: {line}")
        target = {"carry": self.target, "best": self.target.state}
        restored = self.checkpoints.restore(target)
        if restored is None:
            self.checkpoints.check_space(target, 3)
            carry = self.program.init(self.program.knobs)
            if self.experiment.init_from.path is not None:
                states = []
                for i, member in enumerate(self.members):
                    state, line = overlay(_row(carry.state, i), member.experiment.init_from,
                                          member.experiment.task)
                    console.print(f"trial {member.number}: {line}")
                    states.append(state)
                carry = Carry(jax.tree.map(lambda *x: jnp.stack(x), *states), carry.window)
            self.best = jax.tree.map(jnp.copy, carry.state)
            return 0, carry
        arrays, meta, skipped = restored
        for line in skipped:
            console.print(f"warning: {line}")
        for member, (progress, best) in zip(self.members, meta["members"], strict=True):
            member.progress, member.best = Progress(**progress), Progress(**best)
        self.progress.evaluated = list(meta["evaluated"])
        self.best = arrays["best"]
        step = int(arrays["carry"].state.step[0])
        console.print(f"continuing {self.folder} from step {step:,}")
        self.left = step, arrays["carry"]
        return self.left

    def record(self, start: int, sinks: tuple[str, ...]) -> None:
        for _, member in self.active():
            member.run.start(start, self.program.devices.mesh.devices.flat, sinks, self.due(start),
                             train.kept_files(member.experiment))

    def loop(self, step: int, carry: Carry) -> None:
        while True:
            self.stop()
            self.run_steps(step, carry)
            step, carry = self.left
            if step >= self.experiment.steps or not self.active():
                return self.end([member for _, member in self.active()], step, carry)
            step, carry = self.shrunk(step, carry)

    def stop(self) -> None:
        """Whether to leave the loop: where half of what it computes is for nobody."""
        self.progress.stopped = 2 * len(self.active()) <= len(self.rows)

    def shrunk(self, step: int, carry: Carry) -> tuple[int, Carry]:
        """The carry of the trials that still train; from here on the program is one for them."""
        kept = [i for i, _ in self.active()]
        console.print(f"step {step:,}: {len(kept)} of {len(self.rows)} trials go on")
        self.stack = self.whole(carry)
        self.rows = self.rows[kept]
        old = self.program
        trials = [old.trials[i] for i in kept]
        self.clock.enter("compile", step)
        self.program = Program(*trials[0], old.devices, poll=self.signals.poll, trials=trials)
        self.compiled = self.program.compiled
        self.signals.wait(self.program.compile())
        return step, jax.device_put(_row(carry, np.array(kept)), jax.tree.map(
            lambda x: x.sharding, self.program.target))

    def whole(self, carry: Carry) -> Carry:
        """The carry of all members; of those that are not trained any more, as they were left."""
        if len(self.rows) == len(self.members):
            return carry
        return jax.tree.map(lambda a, x: _set(a, self.rows, x), self.stack, carry)

    # What is recorded.

    def checked(self, window: Window) -> Window:
        for i, member in self.active():
            try:
                finite_or_raise(_row(window, i))
            except NonFinite as error:
                self.fail(member, error)
        return window

    def fail(self, member: Member, error: NonFinite) -> None:
        member.failed = (f"step {error.step:,}: {error.names} not finite; a lower learning rate, "
                         "optimizer.clip or nonfinite=skip may help")
        self.end([member], error.step, None)
        self.stop()

    def log(self, step: int, rate: float, waited: float, window: Window) -> None:
        for i, member in self.active():
            values = self.numbers(rate, waited, _row(window, i))
            member.run.log(step, values)
            member.watcher.trained(step, values)

    def evaluate(self, step: int, carry: Carry) -> bool:
        self.flush(carry)
        if not self.active():  # None of them was finite.
            return False
        with self.clock.paused("evaluate", step):
            improved = np.zeros(len(self.members), bool)
            for name in self.due(step):
                for (_, member), values in zip(self.active(), self.measured(name, step, carry),
                                               strict=True):
                    values = {f"{name}/{metric}": float(x) for metric, x in values.items()}
                    member.run.log(step, values)
                    member.progress.evaluated = [*self.progress.evaluated, name]
                    if member.progress.rank(member.experiment.best, name, values, step):
                        improved[self.members.index(member)] = True
                    member.watcher.evaluated(step, values)
                self.progress.evaluated.append(name)
            if improved.any():
                better = jnp.asarray(improved)
                self.best = jax.tree.map(
                    lambda old, new: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                    if not _is_key(new) else _chosen_keys(better, new, old),
                    self.best, self.whole(carry).state)
                for row in np.flatnonzero(improved):
                    self.members[row].best = copy.deepcopy(self.members[row].progress)
            for _, member in self.active():
                member.progress.stopped |= member.watcher.over(step)
            if step < self.experiment.steps:
                self.end([m for _, m in self.active() if m.progress.stopped], step, carry)
        self.stop()
        return False

    def measured(self, name: str, step: int, carry: Carry) -> list[Mapping[str, float]]:
        """The numbers of an evaluator, for each trial that has not ended."""
        def context(member: Member, **options: Any) -> Context:
            return Context(
                name=name, step=step, source=member.opened, devices=self.program.devices,
                batch_size=self.experiment.batch_size, folder=member.run.folder, poll=self.poll,
                **options)

        active, evaluator = self.active(), self.experiment.evals[name]
        if type(evaluator).__call__ is not Evaluate.__call__:  # It may do anything.
            return [member.experiment.evals[name](
                member.experiment.task, _part(carry.state, i), context(
                    member, compiled=self.compiled.setdefault(member.number, {})))
                for i, member in active]
        assert isinstance(evaluator, Evaluate)
        program = self.program

        def measure(task: Any, states: Any, batch: Any) -> Any:
            return jax.vmap(lambda state, knobs: evaluator.measure(program.bound(knobs), state,
                                                                   batch))(*states)

        sums = total(measure, self.experiment.task, (carry.state, program.knobs),
                     context(active[0][1], compiled=self.compiled),
                     split=evaluator.split,
                     batch_size=evaluator.batch_size or self.experiment.batch_size)
        return [evaluator.finish(_row(sums, i), context(member)) for i, member in active]

    def save(self, step: int, carry: Carry) -> None:
        self.flush(carry)
        with self.clock.paused("save", step):
            finite = np.asarray(self.all_finite(carry.state))
            for i, member in self.active():
                if not finite[i]:
                    self.fail(member, NonFinite(step, "parameters are"))
            for _, member in self.active():
                member.run.sync()
            whole = self.whole(carry)
            if active := self.active():  # The others are where they ended, or are replaced.
                state, i = carry.state, active[0][0]
                now = {"step": jnp.full_like(whole.state.step, state.step[i]),
                       "seen": jnp.full_like(whole.state.seen, state.seen[i])}
            else:
                now = {"step": whole.state.step, "seen": whole.state.seen}
            lost = np.array([bool(member.failed) for member in self.members])
            if lost.any():  # What is not finite is never committed.
                rows = np.flatnonzero(lost)
                whole = dataclasses.replace(whole, state=jax.tree.map(
                    lambda x, best: _set(x, rows, best[rows]), whole.state, self.best))
                whole = dataclasses.replace(whole, window=jax.tree.map(
                    lambda x: _set(x, rows, jnp.zeros_like(x[rows])), whole.window))
            whole = dataclasses.replace(whole, state=dataclasses.replace(whole.state, **now))
            self.checkpoints.save(step, {"carry": whole, "best": self.best}, meta={
                "evaluated": self.progress.evaluated,
                "members": [[dataclasses.asdict(m.progress), dataclasses.asdict(m.best)]
                            for m in self.members]})

    def keep(self, step: int, carry: Carry) -> None:
        super().keep(step, carry)
        self.left = step, carry

    def end(self, members: Sequence[Member], step: int, carry: Carry | None) -> None:
        """Some have ended: their last and best states go to their own directories."""
        for first in range(0, len(members), WRITERS):
            self.write(members[first:first + WRITERS], step, carry)
        for member in members:
            member.over = True
            member.run.close()
            member.ended(member.failed)

    def write(self, members: Sequence[Member], step: int, carry: Carry | None) -> None:
        """Saves for several members at once, since each save is mostly waiting."""
        window = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), self.target.window)
        window = dataclasses.replace(window, halted=jnp.full_like(window.halted, -1))
        with contextlib.ExitStack() as stack:
            stores = [stack.enter_context(contextlib.closing(Checkpoints(
                m.run.folder / "checkpoints", m.experiment.keep))) for m in members]
            for best in (True, False):
                for store, member in zip(stores, members, strict=True):
                    row = self.members.index(member)
                    at = member.best.best_step if best else step if carry is not None else None
                    if at is None or (best and at == step and carry is not None):
                        continue
                    state = (_one(self.best, row) if best else
                             _one(carry.state, int(np.flatnonzero(self.rows == row)[0])))  # type: ignore
                    progress = member.best if best else member.progress
                    store.save(at, Carry(state, window), best=member.best.best_step, meta={
                        "progress": dataclasses.asdict(progress),
                        "config": dataclasses.asdict(member.run.record)})

    def report(self) -> None:
        """What was killed between its last checkpoint and this is ended now."""
        self.end([member for _, member in self.active()], *self.left)


class Nobody:
    """Watches nothing: each member has its own watcher."""

    def trained(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def over(self, step: int) -> bool:
        return False

    def close(self) -> None:
        pass


def _row(tree: Any, i: Any) -> Any:
    """One trial's part, or that of several."""
    return jax.tree.map(lambda x: x[i], tree)


_part = jax.jit(_row)  # in one program


def _one(state: Any, i: int) -> Any:
    """One trial's part of a state. If every device has the whole state, the part is that of one
    device: a checkpoint would collect it from all of them."""
    if all(x.is_fully_replicated for x in jax.tree.leaves(state)):
        state = jax.tree.map(lambda x: x.addressable_data(0), state)
    return _part(state, i)


def _set(x: Any, rows: Any, values: Any) -> Any:
    """The array with some rows replaced."""
    return x.at[rows].set(values)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _chosen_keys(condition: Any, a: Any, b: Any) -> Any:
    """`jnp.where` of random keys."""
    return jax.vmap(lambda c, x, y: jax.lax.select(c, x, y))(condition, a, b)
