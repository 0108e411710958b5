"""Checks of the model and the loss that need no training: what JAX can tell exactly."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.checks.data import classes
from jaxdl.checks.subject import NO_LOSS, Finding, Subject, float_leaves, judged, skipped
from jaxdl.task import named


def initial_loss(subject: Subject) -> Finding:
    """A fresh model predicts what the prior does: for K classes its cross-entropy is near log K.

    A larger loss is confident and wrong before it has seen anything (a head that starts too large,
    a sum that should be a mean), a smaller one knows what it cannot know."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    batch = subject.batch(subject.train, 256)
    if hasattr(subject.task, "initial_loss"):
        expected = float(subject.task.initial_loss(batch))
        most = 2 * expected
    elif (count := classes(subject)) is not None and count > 1:
        expected = math.log(count)
        most = min(2 * expected, expected + 1)  # more is one nat of false confidence
    else:
        return skipped("the task does not say what it should be (initial_loss)")
    found = float(subject.compiled(lambda state, batch: subject.loss(
        state.params, state, batch, train=True)[0])(subject.fresh, batch))
    far = not 0.5 * expected < found < most
    near = 0.8 * expected < found < 0.2 * expected + 0.8 * most
    text = f"{found:.4g}"
    return judged(text if far else "", text if not near else "", measured=text,
                  expected=f"about {expected:.4g}",
                  look_at="scale and sign of the loss, initial values of the last layer, labels")


def masks(subject: Subject) -> Finding:
    """Masked examples change nothing, and an evaluation does not depend on the batch size."""
    size = 16
    batch = subject.batch(subject.test, size)
    size = len(batch["mask"])
    half = size // 2
    if half == 0:
        return skipped("there are too few examples")

    def part(first: int, last: int, masked: bool) -> Any:
        """The metrics of some examples: alone, or with all others masked."""
        if not masked:
            return subject.measure(subject.fresh, {k: x[first:last] for k, x in batch.items()})
        mask = ((jnp.arange(size) >= first) & (jnp.arange(size) < last)).astype(jnp.float32)
        return subject.measure(subject.fresh, {**batch, "mask": mask})

    whole = part(0, size, True)
    a, b = part(0, half, True), part(half, size, True)
    alone = part(0, half, False)
    wrong = []
    for name, mean in whole.items():
        total, count = float(mean.total), float(mean.count)
        parts = float(a[name].total + b[name].total), float(a[name].count + b[name].count)
        scale = max(abs(total), 1e-6)
        if parts[1] != count:
            wrong.append(f"{name} counts {count:g} of {size} examples, {parts[1]:g} in two halves")
        elif abs(parts[0] - total) > 1e-3 * scale:
            wrong.append(f"{name} is {total:.5g} in one batch, {parts[0]:.5g} in two halves")
        elif (abs(float(alone[name].total - a[name].total)) > 1e-3 * scale
              or float(alone[name].count) != float(a[name].count)):
            wrong.append(f"{name} of {half} examples is {float(alone[name].total):.5g} alone, "
                         f"{float(a[name].total):.5g} with others that are masked")
    return judged("; ".join(wrong), measured="sums of parts equal the whole", expected="equal",
                  look_at="where the mask is used; statistics of the batch in evaluation")


def evaluation(subject: Subject) -> Finding:
    """Evaluation draws nothing at random: neither the model nor its data, but for what a transform
    says it draws (`jaxdl.data.transforms`), always from the same keys."""
    for split, source in subject.others.items():
        a, b = (subject.batch(source, 64, key) for key in (0, 1))
        drawn = {name for transform in getattr(source, "transforms", ())
                 for name in getattr(transform, "draws", ())}
        for name, x in a.items():
            if name not in drawn and np.asarray(x).tobytes() != np.asarray(b[name]).tobytes():
                return judged(f"{split}: {name} depends on a random key", measured="",
                              expected="the same every time",
                              look_at="augmentation of a split that is held out")
    batch = subject.batch(subject.test)
    first = subject.measure(subject.fresh, batch)
    second = subject.measure(subject.fresh, batch)
    other = first
    if hasattr(subject.fresh, "key"):
        other = subject.measure(dataclasses.replace(subject.fresh, key=jax.random.key(987)), batch)
    for name in first:
        values = [float(m[name].total) for m in (first, second, other)]
        if values[0] != values[1] and not math.isnan(values[0]):
            return judged(f"{name} is {values[0]:.6g}, and {values[1]:.6g} the second time",
                          measured="", expected="the same every time",
                          look_at="state that is not an argument")
        if values[0] != values[2] and not math.isnan(values[0]):
            return judged(f"{name} depends on the state's random key", measured="", expected=
                          "no random numbers", look_at="dropout, or another layer in its training "
                          "mode")
    return judged("", measured="the same to the bit", expected="the same every time")


def example_leak(subject: Subject) -> Finding:
    """The loss of one example depends on no other: its gradient with respect to theirs is zero.

    Exact: a single wrong reshape mixes the batch, trains, and is wrong. Batch norm mixes it on
    purpose, in training alone."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    size, one = 8, 3
    batch = subject.batch(subject.plain, size)
    if len(batch["mask"]) < size:
        return skipped("there are too few examples")
    rest = np.arange(size) != one
    whole = {n: batch[n] for n in subject.inputs}
    floats = {n: x for n, x in whole.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def loss(values: Any, state: Any, train: bool) -> Any:
        """Of the one example. A total is a sum of losses times mask, so it is the derivative with
        respect to the mask: with all others present, which a mask would hide from the model."""
        def total(mask: Any) -> Any:
            return subject.loss(state.params, state, {**batch, **values, "mask": mask},
                                train=train)[1][0].total

        return jax.grad(total)(jnp.ones(size))[one]

    def leaks(train: bool) -> str | None:
        measure = subject.compiled(lambda v, s: (
            loss(v, s, train), jax.grad(lambda f: loss({**v, **f}, s, train))(
                {n: v[n] for n in floats})))
        # After some steps: a fresh model may be blind to its inputs (a zero scale).
        value, found = measure(whole, subject.warm)
        if not float(value):
            return None
        for name, g in found.items():
            per = np.abs(np.asarray(g, np.float64)).reshape(size, -1).max(1)
            if not np.isfinite(per).all() or per[rest].max() > 0:
                j = int(np.flatnonzero(rest)[per[rest].argmax()])
                return f"d loss {one} / d {name} {j} is up to {per[j]:.3g}"
        for name, x in whole.items():
            if name not in floats:
                other = np.asarray(x).copy()
                other[rest] = np.roll(other[rest], 1, axis=0)
                changed = measure({**whole, name: jnp.asarray(other)}, subject.warm)[0]
                if float(changed) != float(value):
                    return (f"loss {one} is {float(value):.7g}, and {float(changed):.7g} with "
                            f"other {name} elsewhere")
        return ""

    if (found := leaks(False)) is None:
        return skipped("the loss is no sum of losses times mask")
    if found:
        return judged(f"in evaluation: {found}", measured="", expected="exactly zero",
                      look_at="reshape, transpose and reductions over the first axis")
    statistics = [n for n in subject.fresh.mutable] if hasattr(subject.fresh, "mutable") else []
    if statistics:
        return judged("", measured=f"zero in evaluation ({', '.join(statistics)}: in training "
                      "batch norm couples them)", expected="exactly zero")
    found = leaks(True)
    return judged(f"in training: {found}" if found else "", measured="zero, in training too",
                  expected="exactly zero",
                  look_at="reshape, transpose and reductions over the first axis")


def causal_leak(subject: Subject) -> Finding:
    """The output at t depends on no input after t, to the bit."""
    task = subject.task
    if not getattr(task, "causal", False):
        return skipped("the task does not say that it is causal")
    batch = subject.batch(subject.plain, 4)
    logits = subject.compiled(task.logits)
    before: Any = np.asarray(logits(subject.warm, batch))
    length = before.shape[1]
    for t in sorted({0, length // 2, length - 2} - {-1, -2}):
        changed = dict(batch)
        for name in subject.inputs:
            x = np.asarray(batch[name]).copy()
            x[:, t + 1:] = np.roll(x, 1, axis=0)[:, t + 1:]
            changed[name] = jnp.asarray(x)
        after = np.asarray(logits(subject.warm, changed))
        difference = np.abs(after - before)[:, :t + 1].max()
        if difference > 1e-6 * max(1., np.abs(before).max()):
            return judged(f"the output at {t} changes by {difference:.3g} with what comes later",
                          measured="", expected="no change",
                          look_at="the mask of attention, padding of convolutions, reversed "
                          "recurrence")
    return judged("", measured="no change", expected="no change")


def gradients(subject: Subject) -> Finding:
    """Every parameter that is trained gets a gradient, and it is finite."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    found = {path: np.asarray(g, np.float64) for path, g in named(subject.gradients).items()}
    bad = [path for path, g in found.items() if not np.isfinite(g).all()]
    none = [path for path, g in found.items() if not g.any() and path not in bad]
    wrong = []
    if bad:
        wrong.append(f"not finite: {', '.join(bad[:3])}" + (f" and {len(bad) - 3} more"
                                                           if len(bad) > 3 else ""))
    if none:
        wrong.append(f"zero: {', '.join(none[:3])}" + (f" and {len(none) - 3} more"
                                                       if len(none) > 3 else ""))
    norms = [float(np.linalg.norm(g)) for g in found.values()]
    text = f"{len(found)} arrays, norms {min(norms):.2g} to {max(norms):.2g}" if norms else "none"
    return judged("; ".join(wrong), measured=text, expected="finite and not zero",
                  look_at="stop_gradient, parameters that are not used, roots and logarithms of "
                  "zero")


def dead_units(subject: Subject) -> Finding:
    """Units that no example of a batch gives a gradient: rectifiers that are off for all. Such a
    layer fails only with hardly a unit left: pictures on one white ground are so alike that half
    of the rectifiers behind them may be off for a whole batch, and yet the network learns."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    worst, path, units = 0., "", 0
    for name, g in named(subject.gradients).items():
        if g.ndim < 2 or not np.isfinite(g).all():
            continue
        columns = np.abs(np.asarray(g)).reshape(-1, g.shape[-1]).max(0)
        units += len(columns)
        if (share := float((columns == 0).mean())) > worst:
            worst, path = share, name
    text = f"{worst:.0%} of {path}" if worst else f"none of {units:,}"
    return judged(text if worst > 0.9 else "", text if worst > 0.25 else "", measured=text,
                  expected="few", look_at="initial biases, learning rate, scale of the inputs")


def finite_differences(subject: Subject) -> Finding:
    """The gradient is that of the loss: (f(p + h v) - f(p - h v)) / 2h = <gradient, v>, in
    float64, for random directions v. It finds a wrong custom gradient."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    task = dataclasses.replace(subject.task, compute_dtype="float64")
    state, batch = subject.warm, subject.batch(subject.train, 8)
    with jax.enable_x64(True):
        widen = lambda x: jnp.asarray(np.asarray(x), jnp.float64) if jnp.issubdtype(  # noqa: E731
            x.dtype, jnp.floating) else x
        state = dataclasses.replace(state, **{n: jax.tree.map(widen, getattr(state, n))
                                              for n in ("params", "frozen", "mutable")})
        batch = {k: widen(x) for k, x in batch.items()}

        def loss(params: Any) -> Any:
            return subject.loss(params, state, batch, train=True, task=task)[0]

        both = subject.compiled(jax.value_and_grad(loss))
        value, gradient = both(state.params)
        if not np.isfinite(float(value)):
            return judged("the loss is not finite", measured="", expected="equal slopes")
        draw, worst, where = np.random.default_rng(0), 0., ""
        leaves, tree = jax.tree.flatten(state.params)
        slopes = jax.tree.leaves(gradient)
        paths = list(named(state.params))
        # One direction in all parameters, then one in each of some: the largest arrays.
        order = sorted(range(len(leaves)), key=lambda i: -leaves[i].size)[:4]
        for only in (None, *order):
            v = [draw.normal(size=x.shape) * (only is None or only == i)
                 for i, x in enumerate(leaves)]
            length = math.sqrt(sum(float((x * x).sum()) for x in v))
            v, h = [x / length for x in v], 1e-5
            up, down = (float(both(jax.tree.unflatten(tree, [
                x + sign * h * d for x, d in zip(leaves, v, strict=True)]))[0]) for sign in (1, -1))
            slope = sum(float((np.asarray(g) * d).sum()) for g, d in zip(slopes, v, strict=True))
            scale = max(abs(slope), 1e-4 * math.sqrt(sum(
                float((np.asarray(g) ** 2).sum()) for g in slopes)), 1e-12)
            error = abs((up - down) / (2 * h) - slope) / scale
            if error > worst or math.isnan(error):
                worst, where = error, "all parameters" if only is None else paths[only]
    text = f"largest relative difference {worst:.1e} ({where})"
    return judged(text if not worst < 2e-2 else "", text if worst > 1e-3 else "", measured=text,
                  expected="below 1e-3", look_at="custom_vjp, stop_gradient, rounding operations")


def _alive(state: Any) -> dict[str, Any]:
    """COLLECTION/PATH -> array of what is mutable, but in layers that are frozen."""
    trained, frozen = ({path.rpartition("/")[0] for path in named(getattr(state, part, {}))}
                       for part in ("params", "frozen"))
    return {path: x for path, x in named(getattr(state, "mutable", {})).items()
            if path.partition("/")[2].rpartition("/")[0] not in frozen - trained}


def modes(subject: Subject) -> Finding:
    """Training differs from evaluation where it should, and nowhere else."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    batch, state = subject.batch(subject.plain), subject.warm
    measure = subject.compiled(lambda key, state: [subject.loss(
        state.params, state, batch, train=train, key=key)[0] for train in (True, False)])
    keys = [jax.random.key(i) for i in range(3)]
    found = np.array([[float(x) for x in measure(key, state)] for key in keys])
    dropout = [path for word in ("dropout", "stochastic_depth")
               for path, rate in float_leaves(subject.experiment, word) if rate > 0]
    smoothing = [path for path, rate in float_leaves(subject.experiment, "smoothing") if rate > 0]
    mutable = _alive(state)
    collections = dict.fromkeys(path.split("/")[0] for path in mutable)
    varies = bool((found[:, 0] != found[0, 0]).any())
    wrong, doubtful = "", ""
    if dropout and not varies:
        wrong = f"{dropout[0]} has no effect: the loss is the same for every key"
    elif (found[:, 1] != found[0, 1]).any():
        wrong = "evaluation depends on the random key"
    elif mutable and all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(
            mutable.values(), _alive(subject.fresh).values(), strict=True)):
        wrong = f"{', '.join(collections)}: never changes in training"
    elif not dropout and not mutable and not smoothing and not math.isclose(
            found[0, 0], found[0, 1], rel_tol=1e-5, abs_tol=1e-6):
        doubtful = (f"the loss is {found[0, 0]:.5g} in training, {found[0, 1]:.5g} in evaluation, "
                    "and there is neither dropout nor batch norm")
    causes = ", ".join([*dropout[:2], *smoothing[:1], *collections])
    return judged(wrong, doubtful, measured=f"loss {found[0, 0]:.4g} in training, "
                  f"{found[0, 1]:.4g} in evaluation", expected="a difference by " + causes if causes
                  else "no difference",
                  look_at="the argument train, and whether mutable collections are returned")


def accumulation(subject: Subject) -> Finding:
    """Two micro-batches give the gradient of the batch that they make up, also where a mask leaves
    them unequal."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    if getattr(subject.fresh, "mutable", {}):
        return skipped("batch norm sees the micro-batch")
    import optax

    batch = subject.batch(subject.plain, 16)
    size = len(batch["mask"]) // 2 * 2
    if size < 4:
        return skipped("there are too few examples")
    batch = {k: x[:size] for k, x in batch.items()}
    batch["mask"] = jnp.asarray(np.arange(size) % 2 == 0, jnp.float32).at[1].set(1)
    quiet, tx = subject.quiet.task, optax.sgd(1.)
    state = dataclasses.replace(subject.warm, opt_state=tx.init(subject.warm.params))

    drawn = subject.compiled(lambda key, state: subject.loss(
        state.params, state, batch, train=True, key=key, task=quiet)[0])
    if float(drawn(jax.random.key(1), state)) != float(drawn(jax.random.key(2), state)):
        return skipped("the loss draws at random, in each micro-batch anew")

    def gradient(parts: int) -> Any:
        task = dataclasses.replace(quiet, accumulate=parts)
        new = subject.compiled(lambda s, b: task.step(s, b, tx)[0].params)(state, batch)
        return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), new,
                            state.params)

    one, two = gradient(1), gradient(2)
    size_of = math.sqrt(sum(float((x ** 2).sum()) for x in jax.tree.leaves(one)))
    apart = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(
        jax.tree.leaves(one), jax.tree.leaves(two), strict=True)))
    error = apart / max(size_of, 1e-12)
    text = f"gradients differ by {error:.1e} of their norm"
    return judged(text if not error < 1e-2 else "", text if error > 1e-4 else "", measured=text,
                  expected="rounding", look_at="a loss that is no sum over examples, or divides by "
                  "itself")


def bfloat16(subject: Subject) -> Finding:
    """In bfloat16 loss and gradient stay near those in float32."""
    if not subject.has_loss:
        return skipped(NO_LOSS)
    batch, state = subject.batch(subject.plain), subject.warm

    def both(dtype: str) -> Any:
        task = dataclasses.replace(subject.quiet.task, compute_dtype=dtype)
        return subject.compiled(jax.value_and_grad(lambda p, s, b: subject.loss(
            p, s, b, train=True, task=task)[0]))(state.params, state, batch)

    (exact, g), (half, h) = both("float32"), both("bfloat16")
    a, b = (np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])
            for t in (g, h))
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    relative = abs(float(half) - float(exact)) / max(abs(float(exact)), 1e-3)
    text = f"loss {float(half):.4g} for {float(exact):.4g}, cosine of the gradients {cosine:.3f}"
    finite = np.isfinite(b).all() and math.isfinite(float(half))
    return judged(text if not finite or relative > 0.2 or cosine < 0.7 else "",
                  text if relative > 0.05 or cosine < 0.95 else "", measured=text,
                  expected="loss within 5 %, cosine above 0.95",
                  look_at="sums, differences of large numbers, exponentials in low precision")


MODEL: Mapping[str, Any] = {f.__name__: f for f in (
    initial_loss, masks, evaluation, example_leak, causal_leak, gradients, dead_units,
    finite_differences, modes, accumulation, bfloat16)}
