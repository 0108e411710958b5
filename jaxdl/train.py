"""The only training loop. At each step: evaluate if due, save if due, leave if asked, update.

The loop never waits for the device: it dispatches steps, and fetches the numbers of a log interval
one interval late, all at once.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import allocator, compilation, config, cost, display, distributed, parallel, record
from jaxdl.checkpoint import Checkpoints, committed, load, select
from jaxdl.clock import Clock
from jaxdl.data.loader import Inputs, Plan, ahead, shuffled
from jaxdl.data.source import Source, assemble
from jaxdl.display import console
from jaxdl.errors import RunError, UsedAsStructure, UserError, nearest
from jaxdl.evaluate import Context
from jaxdl.experiment import Best, Experiment
from jaxdl.init_from import overlay
from jaxdl.nonfinite import NonFinite, explained, finite_or_raise
from jaxdl.process import Preempted, Signals, Watchdog
from jaxdl.retrace import once
from jaxdl.task import Mean, named
from jaxdl.tracing import tracing

STRUCTURE = jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError
FUSED = 100  # steps in one dispatch at most, where steps are short
OPERANDS = "carry", "knobs", "arrays", "inputs", "count"  # of the compiled step
SHORT = 1e9  # floating-point operations of a step below which it is short: some milliseconds


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """The numbers of one log interval, summed on the device.

    Attributes:
      means: sums of the metrics that are means.
      last: the newest value of the others.
      skipped: steps whose update was dropped.
      halted: the first step that was not finite, if such a step ends the run; else -1.
    """

    means: dict[str, Mean]
    last: dict[str, Any]
    skipped: Any
    halted: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
    """What one step hands to the next, and what a checkpoint holds."""

    state: Any
    window: Window


class Program:
    """The compiled functions of an experiment, on the devices it asks for.

    The scalar floats of task, optimizer and transforms, and the seed, are arguments of the
    compiled functions: another learning rate is the same program.

    Args:
      experiment: what to compile.
      source: its training data.
      devices: where.
      fresh: whether a fresh state will be asked for; it is then drawn while the step is traced and
        compiled.
      poll: called while the first batch is waited for; raises when the run must leave.
      trials: experiments with their sources, that differ in such floats and in the seed alone: all
        are trained at once, and every array of the carry and the knobs has a first axis that counts
        them. () for the one experiment, without that axis.

    Attributes:
      traced: one step of one experiment, as JAX traced it.
      notes: what its layers said of the forms that they chose.
      fused: how many steps a dispatch holds at most.
      target: shapes and shardings of the carry.
    """

    def __init__(self, experiment: Experiment, source: Source, devices: parallel.Devices, *,
                 fresh: bool = False, poll: Callable[[], None] = lambda: None,
                 trials: Sequence[tuple[Experiment, Source]] = ()) -> None:
        self.experiment, self.source, self.devices = experiment, source, devices
        self.trials = tuple(trials)
        self.compiled: dict[Any, Any] = {}  # of evaluators
        self._thread = ThreadPoolExecutor(1, "compile")
        self._tree = _declared(experiment, source)
        self._paths = tuple(p for p, leaf in config.leaves(self._tree)
                            if type(leaf.value) is float)
        # Trials of one seed see the same batches, which have no axis of trials then.
        own = len({trial.seed for trial, _ in self.trials}) > 1
        self._axis = int(own)  # of a batch, that counts examples
        self._each = jax.vmap(self._step, (0, 0, None, 0 if own else None)) if trials \
            else self._step
        self.arrays = devices.replicate(source.arrays)
        first = shuffled(source, experiment.seed, 0, experiment.batch_size, 1)
        inputs = next(ahead(source, first, devices.rows(experiment.batch_size), poll))
        self._inputs = structs(devices.place(inputs, experiment.batch_size))
        try:
            state, metrics = self._trace(fresh)
        except STRUCTURE as error:
            self._compile_for_value(error)
            state, metrics = self._trace(fresh)
        window = Window({k: m for k, m in metrics.items() if isinstance(m, Mean)},
                        {k: m for k, m in metrics.items() if not isinstance(m, Mean)},
                        jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.int32))
        self.target = self._stacked(Carry(state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=devices.replicated), window)))
        shardings = jax.tree.map(lambda x: x.sharding, self.target)
        self.fused = self._fused()
        self.step = jax.jit(
            once(self._each if self.fused == 1 else self._steps, "the step", OPERANDS,
                 getattr(source, "shapes", 1)),
            donate_argnums=0,
            out_shardings=shardings, in_shardings=(
                shardings, devices.replicated, devices.replicated,
                *([devices.split(self._axis)] if self.fused == 1 else
                  [devices.split(self._axis + 1), devices.replicated])))
        self.reset = jax.jit(self._reset, out_shardings=shardings.window)
        self.empty = jax.jit(self._empty, out_shardings=shardings.window)

    def of(self, experiment: Experiment, source: Source, *, fresh: bool = False) -> "Program":
        """The same compiled functions for an experiment that differs in floats and the seed. Not
        in those that they were compiled for, which raises UsedAsStructure."""
        tree = _declared(experiment, source)
        if differing := [p for p, leaf in config.leaves(self._tree) if p not in self._paths
                         and type(leaf.value) is float and config.get(tree, p) != leaf.value]:
            raise UsedAsStructure(differing)
        other = copy.copy(self)
        other.experiment, other.source = experiment, source
        other.knobs = self.devices.replicate(self._values(experiment, source))
        other._drawn = self._thread.submit(self._draw, other.knobs) if fresh else None
        return other

    def bound(self, knobs: Any) -> Any:
        """The task with these values of its floats."""
        return self._bind(knobs)[0]

    def assembled(self, seen: Any, knobs: Any, arrays: Any, inputs: Any) -> dict[str, Any]:
        """The transformed batch of the step at this position."""
        *_, source, key = self._bind(knobs)
        key = jax.random.fold_in(jax.random.fold_in(key, 1), seen)
        return assemble(source, arrays, inputs, key)

    def init(self, knobs: Any) -> Carry:
        """The state before the first step."""
        drawn, self._drawn = self._drawn, None  # Kept, it would stay in memory.
        return Carry(drawn.result() if drawn else self._draw(knobs), self.empty())

    def compile(self) -> "Future[jax.stages.Compiled]":
        """Compiles the step in a thread; later calls of it use the result."""
        lowered = self.lowered()  # here: tracing holds Python's lock anyway
        return self._thread.submit(lowered.compile)

    def plan(self, start: int, steps: int) -> Any:
        """The batches of `steps` steps from example number `start` on."""
        seeds = [trial.seed for trial, _ in self.trials] if self._axis else [self.experiment.seed]
        plans = [shuffled(self.source, seed, start, self.experiment.batch_size, steps)
                 for seed in seeds]
        return Plan(steps, lambda i: jax.tree.map(lambda *x: np.stack(x), *(
            plan[i] for plan in plans))) if self._axis else plans[0]

    def lowered(self) -> jax.stages.Lowered:
        """The step as a program for XLA."""
        lead = (self.fused,) * (self.fused > 1) + (len(self.trials),) * self._axis
        inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
            (*lead, *x.shape), x.dtype, sharding=x.sharding and self.devices.split(len(lead))),
            self._inputs)
        count = (np.int32(0),) * (self.fused > 1)
        return self.step.lower(self.target, self.knobs, self.arrays, inputs, *count)

    def advance(self, carry: Carry, batches: list[Inputs]) -> Carry:
        """One dispatch: a step on each of the batches, at most `fused` of them."""
        size = self.experiment.batch_size
        if self.fused == 1:
            placed = self.devices.place(batches[0], size, self._axis)
            return self.step(carry, self.knobs, self.arrays, placed)
        padded = batches + batches[-1:] * (self.fused - len(batches))
        stacked = {name: np.stack([b[name] for b in padded]) for name in padded[0]}
        stacked = self.devices.place(stacked, size, self._axis + 1)
        return self.step(carry, self.knobs, self.arrays, stacked, np.int32(len(batches)))

    def _fused(self) -> int:
        """How many steps to run in one dispatch.

        Several where a step is so short that its dispatch counts, and its data is on the device: as
        many as there are between two lines of the log, evaluations or saves. Never around
        convolutions on CPU, whose gradients are many times slower inside a loop.
        """
        if self.arrays is None:
            return 1
        if jax.default_backend() == "cpu" and cost.holds(self.traced.jaxpr, "conv_general_dilated"):
            return 1
        if cost.flops(self.traced.jaxpr) >= SHORT:
            return 1
        # Two at least: without a loop the same step is the same to rounding, not to the bit.
        return min(FUSED, max(2, min(periods(self.experiment))))

    def _trace(self, fresh: bool) -> tuple[Any, Any]:
        """The shapes of the state and of a step's metrics, of one experiment.

        Both functions are traced here, once: what is compiled calls them with arguments of the same
        types, the mesh included.
        """
        init, self._updated = jax.jit(self._init), jax.jit(self._update)
        one = self.devices.replicate(self._values(self.experiment, self.source))
        each = [self._values(*trial) for trial in self.trials]
        self.knobs = self.devices.replicate(
            jax.tree.map(lambda *x: np.stack(x), *each)) if each else one
        shapes = jax.eval_shape(init, one)
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                             shapes, self.devices.shardings(shapes))
        # Drawn once: to optimise the code that draws takes many times as long as to run it. Trial
        # by trial: on CPU, matrix decompositions of batches may wait for each other for ever.
        cheap = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        draw = functools.partial(jax.lax.map, init) if each else init
        self._draw = jax.jit(draw, compiler_options=cheap, out_shardings=jax.tree.map(
            lambda x: x.sharding, self._stacked(state)))
        fresh = fresh and cost.room("the state", parallel.bytes_of(self._stacked(state)))
        self._drawn = self._thread.submit(self._draw, self.knobs) if fresh else None
        self.notes: set[str] = set()
        with tracing(runs=self.experiment.steps, notes=self.notes):
            self.traced = self._updated.trace(state, one, self.arrays, self._inputs)
        return state, self.traced.out_info[1]

    def _compile_for_value(self, error: Exception) -> None:
        """Finds the floats that are used as structure: each value of them is another program."""
        paths, asked = self._paths, []
        for path in paths:
            self._paths = (path,)
            try:
                self._trace(False)
            except STRUCTURE:
                asked.append(path)
        self._paths = tuple(p for p in paths if asked and p not in asked)
        first = _declared(*self.trials[0]) if self.trials else None
        differing = [p for p in asked or paths if any(
            config.get(_declared(*trial), p) != config.get(first, p) for trial in self.trials)]
        if differing:
            raise UsedAsStructure(differing) from error
        console.print(f"note: {', '.join(asked or ['a float'])} is asked a question, so that every "
                      f"value of it is compiled anew: {str(error).splitlines()[0]}")

    def _values(self, experiment: Experiment, source: Source) -> Any:
        """The floats and the seed of an experiment, as arguments."""
        tree = _declared(experiment, source)
        floats = [config.get(tree, path) for path in self._paths]
        return np.array(floats, np.float32), np.uint32(experiment.seed)

    def _stacked(self, tree: Any) -> Any:
        """The shapes of a tree, one for each trial."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
            (len(self.trials), *x.shape), x.dtype, sharding=self.devices.stacked(x.sharding)),
            tree) if self.trials else tree

    def _bind(self, knobs: Any) -> tuple[Any, Any, Any, Source, jax.Array]:
        floats, seed = knobs
        tree = config.replace(self._tree, dict(zip(self._paths, floats, strict=False)))
        source = self.source
        if hasattr(source, "transforms"):
            source = dataclasses.replace(source, transforms=tree["transforms"])  # type: ignore
        tx = dataclasses.replace(self.experiment, optimizer=tree["optimizer"]).transformations()
        if self.experiment.parallel == "pmap":
            tx = parallel.averaging(tx)
        return tree["task"], tx, tree["optimizer"], source, jax.random.key(seed)

    def _init(self, knobs: Any) -> Any:
        task, tx, _, source, key = self._bind(knobs)
        shapes = jax.eval_shape(functools.partial(assemble, source), self.arrays, self._inputs, key)
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return task.init(jax.random.fold_in(key, 0), batch, tx)

    def _empty(self) -> Window:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.target.window)
        return dataclasses.replace(zeros, halted=jnp.full_like(zeros.halted, -1))

    def _reset(self, window: Window) -> Window:
        return dataclasses.replace(self._empty(), halted=window.halted)

    def _update(self, state: Any, knobs: Any, arrays: Any, inputs: Any) -> tuple[Any, Any]:
        if self.experiment.parallel == "pmap":
            return parallel.per_device(self._advance, self.devices)(state, knobs, arrays, inputs)
        return self._advance(state, knobs, arrays, inputs)

    def _advance(self, state: Any, knobs: Any, arrays: Any, inputs: Any) -> tuple[Any, Any]:
        task, tx, optimizer, *_ = self._bind(knobs)
        new, metrics = task.step(state, self.assembled(state.seen, knobs, arrays, inputs), tx)
        several = optimizer if isinstance(optimizer, Mapping) else {"": optimizer}
        rates = {f"learning_rate{'/' if n else ''}{n}":
                 o.learning_rate(state.step, self.experiment.steps) for n, o in several.items()}
        return new, {**metrics, **rates}

    def _step(self, carry: Carry, knobs: Any, arrays: Any, inputs: Any) -> Carry:
        old, window = carry.state, carry.window
        new, metrics = self._updated(old, knobs, arrays, inputs)
        finite = functools.reduce(jnp.logical_and, (
            jnp.isfinite(x).all() for x in jax.tree.leaves(metrics)))
        if self.experiment.nonfinite == "stop":
            # The state after such a step is lost, and never saved: to keep the one before would
            # cost every step a copy. What the step reported stays in the window. To look through
            # the parameters too would cost an MLP 8 %: an overflow in them shows at the next step.
            noted = window.halted < 0
            halted = jnp.where(noted & ~finite, old.step, window.halted)
        else:
            finite &= _all_finite(new)  # The update of a finite gradient may overflow.
            noted, halted = finite, window.halted
            new = dataclasses.replace(_choose(finite, new, old), step=new.step, seen=new.seen)
        means = {k: window.means[k] + m for k, m in metrics.items() if isinstance(m, Mean)}
        last = {k: m for k, m in metrics.items() if not isinstance(m, Mean)}
        return Carry(new, Window(_choose(noted, means, window.means),
                                 _choose(noted, last, window.last),
                                 window.skipped + ~finite, halted))

    def _steps(self, carry: Carry, knobs: Any, arrays: Any, inputs: Any, count: Any) -> Carry:
        """`count` steps on the first of the stacked inputs. The number is data, so that one program
        serves any grouping, and a run is the same to the bit however its steps are grouped."""
        def body(i: Any, carry: Carry) -> Carry:
            return self._each(carry, knobs, arrays, jax.tree.map(lambda x: x[i], inputs))

        return jax.lax.fori_loop(0, count, body, carry)


def _declared(experiment: Experiment, source: Source) -> dict[str, Any]:
    """What of an experiment the compiled functions are made of."""
    return {"task": experiment.task, "optimizer": experiment.optimizer,
            "transforms": getattr(source, "transforms", ())}


@dataclass
class Progress:
    """What a checkpoint remembers beside the arrays.

    Attributes:
      evaluated: evaluators that have run at this step.
      results: the newest value of each evaluation metric.
      best: the best value so far of the metric that ranks.
      best_step: where it was reached.
      waited: evaluations since then.
      stopped: whether training ended early.
    """

    evaluated: list[str] = dataclasses.field(default_factory=list)
    results: dict[str, float] = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    stopped: bool = False

    def rank(self, ranking: Best, name: str, values: Mapping[str, float], step: int) -> bool:
        """Takes in the metrics of an evaluator; whether the one that ranks has improved."""
        self.results |= values
        if ranking.metric is None or ranking.metric.split("/")[0] != name:
            return False
        if ranking.metric not in values:
            raise UserError(f"best.metric={ranking.metric}: the evaluator has no such metric."
                            f"{nearest(ranking.metric, values)}")
        if better(values[ranking.metric], self.best, ranking.mode):
            self.best, self.best_step, self.waited = values[ranking.metric], step, 0
            return True
        self.waited += 1
        self.stopped = ranking.patience is not None and self.waited >= ranking.patience
        return False


def fit(experiment: Experiment, run: record.Run, *, sinks: tuple[str, ...] = (),
        profile: range | None = None, grace: float | None = None,
        watchdog: Watchdog | None = None, watcher: display.Watcher | None = None,
        strict_compile: bool = False, compile: "Callable[..., Program]" = Program,
        opened: Callable[[str], Source] | None = None) -> Progress:
    """Trains from the run's newest checkpoint, or from the start, to the last step.

    Args:
      experiment: what to train.
      run: where to record it; closed at the end.
      sinks: names of further sinks, see sinks.py.
      profile: steps to trace, see profile.py.
      grace: seconds after a signal when the process ends, however far it is with saving.
      watchdog: is told of progress.
      watcher: is told of numbers; None for a line on the terminal.
      strict_compile: ends the run where the step or an evaluator would be compiled again.
      compile: makes the program.
      opened: its data, as `splits` opens it.

    Raises:
      Preempted: the process was asked to leave; everything is saved.
      RunError: a step was not finite, or a save failed.
    """
    allocator.keep_memory()
    compilation.keep_programs()
    agree = distributed.leaving if distributed.several() else str
    with (Signals(agree, grace) as signals, contextlib.closing(run),
          tracing(strict=strict_compile)):
        devices = parallel.arrange(experiment.mesh, experiment.rules)
        validate(experiment, devices)
        opened = opened or splits(experiment)
        clock, folder = Clock(watchdog), run.folder / "checkpoints"
        clock.enter("compile", 0)
        fresh = distributed.by_leader(lambda: not committed(folder))
        program = compile(experiment, opened("train"), devices, fresh=fresh, poll=signals.poll)
        signals.poll()
        try:
            with (contextlib.closing(Checkpoints(folder, experiment.keep)) as checkpoints,
                  distributed.together()):
                return Fit(experiment, run, program, checkpoints, opened, signals, clock,
                           profile, watcher)(sinks)
        except OSError as error:
            left = (f"what is committed in {folder} is intact" if folder.is_dir() else
                    f"{folder} was deleted or moved while the run wrote into it")
            raise RunError(f"{error.filename or run.folder}: {error.strerror}; {left}.") from error


class Fit:
    """One call of `fit`: what its parts share."""

    def __init__(self, experiment: Experiment, run: record.Run, program: Program,
                 checkpoints: Checkpoints, opened: Callable[[str], Source],
                 signals: Signals, clock: Clock, profile: range | None = None,
                 watcher: display.Watcher | None = None) -> None:
        self.experiment, self.run, self.program = experiment, run, program
        self.checkpoints, self.opened, self.signals = checkpoints, opened, signals
        self.progress, self.clock, self.watcher = Progress(), clock, watcher
        self.compiled = program.compiled  # of the evaluators
        self.pending: tuple[int, tuple[int, float, float], Window] | None = None
        self.all_finite = jax.jit(_all_finite)
        self.flops, self.peak = 0., None  # of a step; a second, of the devices together
        self.profile = None
        if profile is not None:
            from jaxdl.profile import Profile
            self.profile = Profile(profile, run.folder / "profile")

    def __call__(self, sinks: tuple[str, ...]) -> Progress:
        end, program, began = self.experiment.steps, self.program, time.perf_counter()
        # While the state is drawn; while one is read it may turn out that there is nothing to do.
        compiling = None if self.checkpoints.steps() else program.compile()
        start, carry = self.begin()
        if self.progress.stopped or (start >= end and not self.due(start)):
            early = ", stopped early" if self.progress.stopped else ""
            console.print(f"{self.run.folder} is finished (step {start:,}{early}).")
            self.report()
            return self.progress
        if self.profile is not None:
            self.profile.check(start)
        self.record(start, sinks)
        if start < end:
            self.clock.enter("compile", start)
            compiled = self.signals.wait(compiling or program.compile())
            memory = cost.with_room(compiled.memory_analysis())
            self.flops, self.peak = cost.rates(program, measure=self.profile is not None)
            found, missed = compilation.lookups()
            peak = f" (peak {self.peak / 1e9:,.0f} a second)" if self.peak else ""
            console.print(f"compiled in {time.perf_counter() - began:.1f} s ({found} of "
                          f"{found + missed} programs were in the cache); state "
                          f"{display.size(parallel.bytes_of(carry.state))}, data on the device "
                          f"{display.size(parallel.bytes_of(program.arrays))}, temporaries of a "
                          f"step {display.size(memory.temp_size_in_bytes) if memory else '?'}, "
                          f"{self.flops / 1e9:.4g} GFLOP a step{peak}")
            if program.notes:
                console.print("; ".join(sorted(program.notes)))
            if self.profile is not None:
                self.profile.program = compiled.as_text() or ""
            self.signals.poll()
        distributed.barrier("main")  # Gloo waits 30 seconds for all to begin, however they compile.
        with contextlib.closing(self.watcher or display.Bar(start, end)) as self.bar, (
                contextlib.closing(self.profile) if self.profile else contextlib.nullcontext()):
            self.loop(start, carry)
        console.print(f"finished: {self.run.folder}")
        self.report()
        return self.progress

    def record(self, start: int, sinks: tuple[str, ...]) -> None:
        """Opens the log, from this step on."""
        self.run.start(start, self.program.devices.mesh.devices.flat, sinks, self.due(start),
                       kept_files(self.experiment))

    def begin(self) -> tuple[int, Carry]:
        """(step, carry) of the newest checkpoint, or of a fresh start."""
        program, run = self.program, self.run
        self.clock.enter("restore", 0)
        for line in self.checkpoints.set_aside:
            console.print(f"warning: {line}")
        restored = self.checkpoints.restore(program.target)
        if restored is not None:
            carry, meta, skipped = restored
            for line in skipped:
                console.print(f"warning: {line}")
            self.progress = Progress(**meta["progress"])
            step = int(carry.state.step)
            if step < self.experiment.steps and not self.progress.stopped:
                console.print(f"continuing {run.folder} from step {step:,}")
            return step, carry
        self.checkpoints.check_space(program.target, self.experiment.keep + 2)
        carry = self.fresh()
        if hasattr(carry.state, "params"):
            console.print(display.parameter_table(named(carry.state.params),
                                                 named(getattr(carry.state, "frozen", {}))))
        return 0, carry

    def fresh(self) -> Carry:
        """The carry of a fresh start."""
        carry = self.program.init(self.program.knobs)
        if self.experiment.init_from.path is None:
            return carry
        state, line = overlay(carry.state, self.experiment.init_from,
                              self.experiment.task)
        console.print(line)
        return Carry(state, carry.window)

    def loop(self, step: int, carry: Carry) -> None:
        """Runs to the last step; a step that was not finite ends it wherever that is noticed."""
        try:
            self.run_steps(step, carry)
        except NonFinite as error:
            raise explained(self, error) from error

    def run_steps(self, step: int, carry: Carry) -> None:
        experiment, program, progress, clock = (self.experiment, self.program, self.progress,
                                                self.clock)
        start, end, self.signals.begun = step, experiment.steps, True
        clock.start()
        seen = int(np.ravel(carry.state.seen)[0])  # of trials trained together the same
        stream, advance = ahead(program.source, program.plan(seen, end - step),
                                program.devices.rows(experiment.batch_size),
                                self.signals.poll), program.advance
        if self.profile is not None:
            stream, advance = self.profile.annotated(stream, advance)
        try:
            while True:
                self.trace(step, carry, begin=False)
                self.checkpoints.poll()
                improved = self.evaluate(step, carry) if self.due(step) else False
                if step >= end or progress.stopped:
                    return self.keep(step, carry)
                if improved or (step % experiment.save_every == 0 and step > start):
                    self.save(step, carry)
                self.signals.poll()
                self.trace(step, carry, begin=True)
                count = min(program.fused, self.until(step))
                with clock.waiting(count):
                    batches = list(itertools.islice(stream, count))
                clock.enter("step", step, batches)
                carry = advance(carry, batches)
                clock.follow(carry, count)
                step += count
                progress.evaluated.clear()
                if step % experiment.log_every == 0 or step == end:
                    self.flush()  # the interval before this one: the device has long done it
                    self.pending = step, clock.dispatched(), carry.window
                    carry = Carry(carry.state, program.reset(carry.window))
        except Preempted as signal:
            self.keep(step, carry)
            raise Preempted(f"{signal}: saved step {step:,}; continue with "
                            f"--workdir={self.run.folder}") from None
        except UserError:  # Of the data: what was learned until now is kept.
            if not distributed.several():  # It takes all to save, and the others know nothing.
                self.keep(step, carry)
            raise

    def until(self, step: int) -> int:
        """Steps from here to the next at which the loop has something else to do."""
        bounds = () if self.profile is None else (
            s - step for s in (self.profile.steps.start, self.profile.steps.stop) if s > step)
        return min(self.experiment.steps - step, *bounds,
                   *(p - step % p for p in periods(self.experiment)))

    def trace(self, step: int, carry: Carry, *, begin: bool) -> None:
        """Begins or ends the profile, if this is the step."""
        if self.profile is None:
            return
        if step == (self.profile.steps.start if begin else self.profile.steps.stop):
            jax.block_until_ready(carry)
            self.flush()
            with self.clock.paused("profile", step):
                self.profile.start() if begin else self.profile.stop()

    def keep(self, step: int, carry: Carry) -> None:
        """Saves, and waits until it is on disk."""
        self.save(step, carry)
        self.checkpoints.wait()

    def flush(self, carry: Carry | None = None) -> None:
        """Logs the interval that was dispatched last. A step in it that was not finite ends the
        run; with `carry`, one in the interval under way does too."""
        if self.pending is not None:
            (step, (steps, waited, seconds), window), self.pending = self.pending, None
            window = self.checked(jax.device_get(window))
            seconds = max(seconds, self.clock.arrived())
            self.log(step, steps / seconds, waited / seconds, window)
        if carry is not None:
            self.checked(jax.device_get(carry.window))

    def checked(self, window: Window) -> Window:
        """The window, unless a step in it ended the run."""
        return finite_or_raise(window)

    def log(self, step: int, rate: float, waited: float, window: Window) -> None:
        """One line of the training log."""
        values = self.numbers(rate, waited, window)
        self.run.log(step, values)
        self.bar.trained(step, values)

    def numbers(self, rate: float, waited: float, window: Window) -> dict[str, float]:
        """What a log interval comes to."""
        values = {name: float(np.float64(mean.total) / np.float64(mean.count))
                  for name, mean in window.means.items() if mean.count}
        values |= {name: float(x) for name, x in window.last.items()}
        values["examples_per_second"] = rate * self.experiment.batch_size
        values["data_wait"] = waited
        values["flops_per_second"] = rate * self.flops
        if self.peak is not None:
            values["mfu"] = rate * self.flops / self.peak
        values["memory_peak"] = cost.memory_peak()
        if window.skipped:
            values["skipped"] = float(window.skipped)
        return {f"train/{name}": value for name, value in values.items()}

    def due(self, step: int) -> list[str]:
        """The evaluators to run at this step: on their schedule, and all after the last."""
        return [name for name, evaluator in self.experiment.evals.items()
                if name not in self.progress.evaluated and step > 0 and (
                    step % evaluator.every == 0 or step == self.experiment.steps)]

    def evaluate(self, step: int, carry: Carry) -> bool:
        """Runs the evaluators that are due; whether the ranked metric improved."""
        self.flush(carry)
        improved = False
        with self.clock.paused("evaluate", step):
            for name in self.due(step):
                values = self.experiment.evals[name](self.experiment.task, carry.state, Context(
                    name=name, step=step, source=self.opened, devices=self.program.devices,
                    batch_size=self.experiment.batch_size,
                    folder=self.run.folder if distributed.leads() else None, poll=self.poll,
                    compiled=self.compiled, knobs=self.program.knobs, bound=self.program.bound))
                values = {f"{name}/{metric}": float(x) for metric, x in values.items()}
                values = distributed.by_leader(lambda values=values: values)
                self.run.log(step, values)
                self.bar.evaluated(step, values)
                self.progress.evaluated.append(name)
                improved |= self.progress.rank(self.experiment.best, name, values, step)
            self.progress.stopped |= self.bar.over(step)
        return improved

    def poll(self) -> None:
        """Between the batches of an evaluation."""
        self.clock.alive()
        self.signals.poll()

    def save(self, step: int, carry: Carry) -> None:
        """Starts a checkpoint, once all numbers up to here are in the log."""
        self.flush(carry)
        with self.clock.paused("save", step):
            if not self.all_finite(carry.state):
                raise NonFinite(step, "parameters are")
            self.run.sync()
            self.checkpoints.save(step, carry, best=self.progress.best_step, meta={
                "progress": dataclasses.asdict(self.progress),
                "config": dataclasses.asdict(self.run.record)})

    def report(self) -> None:
        """The newest numbers of every evaluator, as a table."""
        if self.progress.results:
            console.print(display.metric_table(self.progress.results))
        if self.progress.best is not None:
            console.print(f"best {self.experiment.best.metric} {self.progress.best:.6g} at step "
                          f"{self.progress.best_step:,}")


def periods(experiment: Experiment) -> list[int]:
    """The steps after which the loop has something else to do than to train."""
    return [experiment.log_every, experiment.save_every,
            *(e.every for e in experiment.evals.values())]


def better(value: float, than: float | None, mode: str) -> bool:
    """Whether a metric improves; what is not finite never does, in whichever direction."""
    if not math.isfinite(value):
        return False
    return than is None or (value > than if mode == "max" else value < than)


def validate(experiment: Experiment, devices: parallel.Devices) -> None:
    """Raises a UserError for what no single leaf shows, before anything is compiled."""
    parallel.check_mode(experiment.parallel, devices)
    parallel.check_batch(experiment.batch_size, devices,
                         getattr(experiment.task, "accumulate", 1))
    if experiment.steps * experiment.batch_size >= 1 << 32:
        raise UserError(f"steps={experiment.steps:,} times batch_size={experiment.batch_size:,} "
                        "examples: a run counts at most 4,294,967,295.")
    metric = experiment.best.metric
    if metric is not None and metric.split("/")[0] not in experiment.evals:
        raise UserError(f"best.metric={metric}: expected EVALUATOR/METRIC, with one of evals: "
                        f"{', '.join(experiment.evals) or 'none'}."
                        f"{nearest(metric.split('/')[0], experiment.evals)}")
    for part in (experiment.task, *experiment.evals.values()):
        getattr(part, "check", lambda experiment: None)(experiment)


def kept_files(experiment: Experiment) -> Mapping[str, bytes]:
    """What the data wants to be kept in the run, if anything: a tokenizer."""
    return getattr(experiment.data, "files", dict)()


def splits(experiment: Experiment) -> Callable[[str], Source]:
    """Opens splits of the experiment's data, each once; those of its evaluators now, so that a
    misspelt one is known before the first step. Data that has `check` is asked whether the rest of
    the experiment suits it."""
    if hasattr(experiment.data, "check"):
        experiment.data.check(experiment)  # pyright: ignore[reportAttributeAccessIssue]

    @functools.cache
    def opened(split: str) -> Source:
        source = experiment.data.open(split)
        if source.size == 0:
            raise UserError(f"data: the split '{split}' holds no examples.")
        return source

    for evaluator in experiment.evals.values():
        if isinstance(split := getattr(evaluator, "split", None), str):
            opened(split)
    return opened


def evaluate(experiment: Experiment, folder: Path,
             step: str = "last") -> tuple[int, dict[str, float]]:
    """(step, metrics) of all evaluators on a checkpoint of a run: what `fit` logged there.

    Args:
      experiment: as recorded in the run.
      folder: the run directory; only read.
      step: "best", "last" or the number of a checkpoint.
    """
    allocator.keep_memory()
    compilation.keep_programs()
    number = distributed.by_leader(lambda: select(folder, step))
    devices = parallel.arrange(experiment.mesh, experiment.rules)
    opened = splits(experiment)
    program, state = restored(experiment, folder, number, opened("train"), devices)
    return number, {
        f"{name}/{metric}": float(x) for name, evaluator in experiment.evals.items()
        for metric, x in evaluator(experiment.task, state, Context(
            name=name, step=number, source=opened, batch_size=experiment.batch_size,
            devices=devices, knobs=program.knobs, bound=program.bound)).items()}


def restored(experiment: Experiment, folder: Path, step: int, source: Source,
             devices: parallel.Devices) -> tuple[Program, Any]:
    """(program, state) of a checkpoint, on these devices, wherever it was trained. Of the source
    the shapes alone matter. A UserError if the checkpoint cannot be read, or is of another one."""
    program = Program(experiment, source, devices)
    try:
        carry, _ = load(folder / "checkpoints", step, {"state": program.target.state}, True)
        return program, carry["state"]
    except (ValueError, OSError) as error:
        raise UserError(f"{error}.") from error


def structs(tree: Any) -> Any:
    """The shapes, types and, of JAX's own, shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        np.shape(x), x.dtype, sharding=getattr(x, "sharding", None)), tree)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    """One of two trees of arrays."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _all_finite(state: Any) -> jax.Array:
    return functools.reduce(jnp.logical_and, (
        jnp.isfinite(x).all() for x in jax.tree.leaves(state)
        if jnp.issubdtype(x.dtype, jnp.floating)), jnp.bool_(True))
