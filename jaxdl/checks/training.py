"""Checks that train: a few hundred steps of the experiment's own recipe, all with one compiled step
for which the data, the labels and the learning rate are arguments."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxdl import config
from jaxdl.checks.data import shapes
from jaxdl.checks.subject import (
    NO_LOSS,
    TEST,
    Finding,
    Subject,
    judged,
    skipped,
    window_loss,
)
from jaxdl.errors import UserError, told
from jaxdl.task import named
from jaxdl.train import Carry, Program


def updates(subject: Subject) -> Finding:
    """A step changes each weight by about a thousandth of it.

    The norm of the update over the norm of the parameter, by array, at a third of the recipe. Far
    less: it hardly learns; far more: it jumps."""
    ratios: dict[str, float] = {}
    last = max(2, subject.experiment.steps // 3)
    states: list[Any] = []

    def watch(step: int, carry: Carry) -> None:
        if step >= last - 1:
            states.append(jax.device_get(getattr(carry.state, "params", {})))

    subject.trained(steps=last, watch=watch)
    before, after = states[-2:]
    for path, old in named(before).items():
        if old.ndim >= 2 and (size := float(np.linalg.norm(old))) > 0:
            ratios[path] = float(np.linalg.norm(named(after)[path] - old)) / size
    if not ratios:
        return skipped("the state has no params of two dimensions")
    values = np.array(list(ratios.values()))
    middle = float(np.median(values))
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    text = (f"median {middle:.1e}, from {ratios[low]:.1e} ({low}) to {ratios[high]:.1e} ({high})")
    wrong = not np.isfinite(values).all() or middle > 0.3 or middle < 1e-6
    return judged(text if wrong else "", text if middle > 5e-2 or middle < 3e-5 else "",
                  measured=text, expected="about 1e-3",
                  look_at="the learning rate and its schedule")


def compiles_once(subject: Subject) -> Finding:
    """All batches have one shape, so that a run compiles its step once. (What else may have it
    compiled again, `jaxdl.retrace` tells when it happens.)"""
    found: set[Any] = set()
    for i, shape in enumerate(shapes(subject)):
        found.add(shape)
        if len(found) > 1:
            return judged(f"batch {i} has {shape[0]} examples, the ones before "
                          f"{next(s for s in found if s != shape)[0]}", measured="",
                          expected="one shape", look_at="index() of the data's source at the end "
                          "of an epoch")
    return judged("", measured="one shape", expected="one shape")


def overfits(subject: Subject) -> Finding:
    """One small batch can be learned by heart: its loss comes to nearly nothing.

    Without augmentation and dropout. If the declared learning rate does not do it, a tenth and ten
    times as much are tried."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    batch = subject.experiment.batch_size
    few = min(16, batch, subject.plain.size)
    index = np.resize(subject.ids(subject.plain, few), batch)
    best, rate, curves = math.inf, 1., {}
    first = math.nan
    for factor in (1., 0.1, 10.) if subject.rates else (1.,):
        program = subject.program if factor == 1 else subject.with_rate(factor)
        losses: list[float] = []
        subject.trained(program=program, index=index,
                        watch=lambda step, carry, to=losses: to.append(window_loss(carry)))
        curves[f"learning rate x {factor:g}"] = losses
        if not math.isfinite(first):
            first = losses[0]
        last = float(np.nanmin(losses[-10:])) if np.isfinite(losses[-10:]).any() else math.inf
        if last < best:
            best, rate = last, factor
        if best < 0.2 * abs(first):
            break
    subject.curves["overfits"] = ("loss of one batch, learned by heart",
                                  list(range(1, 1 + max(map(len, curves.values())))), curves)
    text = f"{first:.3g} → {best:.2g} in {subject.experiment.steps} steps"
    if rate != 1:
        text += f" with {rate:g} times the learning rate"
    short = subject.experiment.steps < 100
    failed = not best < 0.5 * abs(first)
    return judged(text if failed and not short else "",
                  text if failed or rate != 1 or best > 0.2 * abs(first) else "",
                  measured=text, expected="nearly 0", look_at="the output and the loss (a softmax "
                  "too many?), detached layers, the learning rate")


def uses_inputs(subject: Subject) -> Finding:
    """A model that sees its inputs beats one that is trained and tested on zeros."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    if not subject.targets:  # A task whose target is its input finds zeros easy.
        return skipped("the task names no targets")
    real, blind = subject.real["loss"], subject.blind["loss"]
    text = f"loss {real:.3g} with inputs, {blind:.3g} without"
    gain = (blind - real) / max(abs(blind), 1e-9)  # of a loss that may be negative
    deviations = 0.
    if not gain > 0.05:
        # A model that overfits is too sure of itself, which costs loss, and yet may be right.
        size = min(subject.test.size, TEST)
        for name, chance in subject.blind.items():
            if "accuracy" in name and name in subject.real:
                deviation = math.sqrt(max(chance * (1 - chance), 1 / size) / size)
                deviations = max(deviations, (subject.real[name] - chance) / deviation)
                text += f", {name} {subject.real[name]:.3g} and {chance:.3g}"
    return judged(text if not gain > 0.02 and deviations < 2 else "",
                  text if gain < 0.05 and deviations < 4 else "", measured=text,
                  expected="clearly lower with inputs",
                  look_at="whether inputs and labels belong together; the learning rate")


def shuffled_labels(subject: Subject) -> Finding:
    """Trained on labels in a random order, it must fall to chance on the test data. If it does
    not, it sees the label, or the metric is always right."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    if not subject.targets:
        return skipped("the task names no targets")
    train: Any = subject.plain
    order = np.random.default_rng(0).permutation(train.size)
    arrays = {n: np.asarray(x)[order] if n in subject.targets else x
              for n, x in (train.arrays or {}).items()}
    found = subject.evaluated(subject.trained(arrays=arrays).state, subject.test)
    blind = subject.blind
    size = min(subject.test.size, 512)
    wrong = []
    for name, value in found.items():
        if "accuracy" in name and name in blind:
            labels = np.asarray((subject.test.arrays or {}).get(subject.targets[0], np.zeros(1)))
            labels = labels[labels >= 0]  # Of a token, -1 is none.
            chance = float(np.unique(labels, return_counts=True)[1].max() / labels.size)
            if "top" in name:
                continue
            chance = max(chance, min(blind[name], 0.5))
            if value > chance + 0.1 + 4 * math.sqrt(chance * (1 - chance) / size):
                wrong.append(f"{name} is {value:.1%}, chance {chance:.1%}")
    if found["loss"] < blind["loss"] - 0.2 * abs(blind["loss"]):
        wrong.append(f"loss {found['loss']:.3g}, {blind['loss']:.3g} without inputs")
    text = ", ".join(f"{n} {v:.3g}" for n, v in found.items())
    return judged("; ".join(wrong), measured=text, expected="chance",
                  look_at="targets among the inputs, and how the metric is computed")


WIDTHS = ("widths", "width", "channels", "features", "hidden", "dense", "depth", "layers")


def wider(experiment: Any) -> tuple[str, Any, Any] | None:
    """(path, value, a larger one) of what makes the model larger."""
    leaves = {p: leaf.value for p, leaf in config.leaves(experiment) if p.startswith("task.")}
    for word in WIDTHS:
        for path, value in leaves.items():
            if path.rpartition(".")[2] != word or not value:
                continue
            if isinstance(value, tuple) and all(type(v) is int for v in value):
                return path, value, tuple(2 * v for v in value)
            if type(value) is int and word != "depth":
                return path, value, 2 * value
            if type(value) is int:  # 6n + 2, or a table's next
                return path, value, {18: 34, 34: 50, 50: 101, 101: 152}.get(value, value + 6)
    return None


def _alike(experiment: Any, path: str, value: Any) -> Iterator[str]:
    """The same leaf of every part that has one: tasks that share layers grow together."""
    last = path.rpartition(".")[2]
    for other, leaf in config.leaves(experiment):
        if other.startswith("task.") and other.rpartition(".")[2] == last and leaf.value == value:
            yield other


def capacity(subject: Subject) -> Finding:
    """A larger model fits the training data at least as well."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    if subject.experiment.init_from.path is not None:
        return skipped("the network's size is that of the weights it starts from")
    found = wider(subject.quiet)
    if found is None:
        return skipped(f"none of {', '.join(WIDTHS)} is a leaf of the task")
    path, old, new = found
    try:
        larger = Program(config.replace(subject.quiet, {p: new for p in _alike(
            subject.quiet, path, old)}), subject.plain,
                         subject.devices)
    except UserError as error:  # A size that the model does not have.
        return skipped(f"{path}={new}: {error}")
    except Exception as error:  # The model's own, and perhaps a mistake in it.
        return judged("", f"{path}={new}: {told(error)}", measured="", expected="a larger model",
                      look_at="whether sizes are written down twice")

    def count(program: Program) -> int:
        return sum(x.size for x in jax.tree.leaves(getattr(program.target.state, "params", {})))

    sizes = count(subject.program), count(larger)
    steps = min(subject.experiment.steps, 40)
    batch = subject.experiment.batch_size
    index = subject.ids(subject.plain, min(batch, subject.plain.size))
    losses = []
    for program in (subject.program, larger):
        tail: list[float] = []
        subject.trained(program=program, steps=steps, index=index,
                        watch=lambda step, carry, to=tail: to.append(window_loss(carry)))
        losses.append(float(np.median(tail[-5:])))
    text = (f"loss {losses[0]:.3g} with {path.removeprefix('task.')}={old} ({sizes[0]:,} "
            f"parameters), {losses[1]:.3g} with {new} ({sizes[1]:,})")
    wrong = f"{path}={new} has as many parameters as {old}" if sizes[1] <= sizes[0] else ""
    worse = losses[1] > losses[0] * 1.1 + 0.05
    return judged(wrong, text if worse else "", measured=text, expected="not higher",
                  look_at="whether the model uses its sizes; the learning rate")


def learning_rate_range(subject: Subject) -> Finding:
    """The learning rate lies where the loss falls (Smith 2017, section 3.3: it is raised
    exponentially, step by step, until the loss explodes)."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    if not subject.rates:
        return skipped("the optimizer has no learning_rate.peak")
    schedule = config.get(subject.quiet, subject.rates[0].removesuffix(".peak"))
    steps = min(60, subject.experiment.steps)
    factors = np.logspace(-3, 2.5, steps)
    base = subject.with_rate(1.)
    plan = subject.program.plan(0, steps)
    carry = base.init(base.knobs)
    carry = Carry(subject.begun(carry.state), carry.window)
    rates, losses = [], []
    for i, factor in enumerate(factors):
        # What the schedule takes away at this step, in a warm-up say, is given back.
        part = float(schedule(i, subject.experiment.steps)) / max(schedule.peak, 1e-30)
        base.knobs = subject.with_rate(float(factor) / max(part, 1e-6)).knobs
        carry = base.advance(carry, [plan[i]])
        rates.append(float(np.ravel(next(x for n, x in carry.window.last.items()
                                         if n.startswith("learning_rate")))[0]))
        losses.append(window_loss(carry))
        carry = Carry(carry.state, base.reset(carry.window))
        if not math.isfinite(losses[-1]) or losses[-1] > 4 * max(losses[0], 1e-3):
            break
    smooth = [losses[0]]
    for x in losses[1:]:
        smooth.append(0.8 * smooth[-1] + 0.2 * x if math.isfinite(x) else math.inf)
    subject.curves["learning_rate_range"] = ("loss while the learning rate is raised", rates,
                                             {"loss": losses, "smoothed": smooth})
    lowest = int(np.argmin(smooth))
    fall = smooth[0] - smooth[lowest]
    if fall <= 0.02 * abs(smooth[0]):
        return judged("", f"the loss does not fall from {smooth[0]:.3g} at any rate", measured="",
                      expected="a fall", look_at="the loss and the gradients")
    start = next(i for i, x in enumerate(smooth) if x < smooth[0] - 0.1 * fall)
    low, high = rates[start], rates[lowest]
    peak = float(config.get(subject.declared, subject.rates[0]))
    text = f"falls from {low:.1e} to {high:.1e}; declared {peak:.1e}"
    outside = not low / 10 < peak < 10 * high
    return judged("", text if outside else "", measured=text,
                  expected="declared within ten times of it", look_at=subject.rates[0])


TRAINING: Mapping[str, Any] = {f.__name__: f for f in (
    updates, compiles_once, overfits, uses_inputs, shuffled_labels, capacity, learning_rate_range)}
