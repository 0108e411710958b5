"""What is learned: a task is three pure functions over a state of arrays.

`LossTask` derives all three from one method, `loss`; nine families in ten write nothing else.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxdl.config import Fraction, Regex, Size
from jaxdl.errors import UserError, nearest
from jaxdl.matmul import fast_dtype
from jaxdl.tracing import current

Array = jax.Array
Batch = Mapping[str, Array]
S = TypeVar("S")

# What the backward pass recomputes. "full": everything, from the inputs. "dots": all but matrix
# products. "dots_no_batch": also those of two activations, such as attention scores, which grow
# with the square of the length. (On CPU attention is recomputed under each.)
Remat = Literal["full", "dots", "dots_no_batch"]
_policies = jax.checkpoint_policies
_product = _policies.save_only_these_names("product")  # of `jaxdl.matmul`
REMAT: dict[str, Callable[..., bool]] = {
    "full": _policies.nothing_saveable,
    "dots": _policies.save_from_both_policies(_policies.dots_saveable, _product),
    "dots_no_batch": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _product)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A mean as the pair (total, count), so that masks, shards and batches add up exactly.

    Both are scalars; sums of other shapes are an evaluator's business.
    """

    total: Array
    count: Array

    @classmethod
    def of(cls, values: Array, mask: Array) -> "Mean":
        """The mean of values [B, ...] where mask [B, ...] is set; masked values may be NaN."""
        kind = jnp.promote_types(values.dtype, jnp.float32)
        weights = mask.astype(kind)
        values = jnp.where(weights > 0, values.astype(kind), 0)
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> Array:
        """total / count, and NaN where nothing was counted."""
        return self.total / self.count


Metrics = Mapping[str, Mean | Array]  # a Mean is averaged over steps; of a scalar the last counts


class Task(Protocol[S]):
    """What is learned. S is a dataclass and a pytree of arrays, with `.step` and `.seen` (examples
    trained on).

    It may have two methods more: `check(experiment)` raises a UserError where the rest of the
    experiment does not suit it, and of a task whose step updates by an optimizer more than once
    `updates_per_step(name)` is how often, for the optimizer of that name ("" where there is one),
    so that schedules end where the run does."""

    def init(self, key: Array, batch: Batch, tx: Any) -> S:
        """The state before the first step. Only shapes and types of `batch` matter."""
        ...

    def step(self, state: S, batch: Batch, tx: Any) -> tuple[S, Metrics]:
        """One update; pure, compiled by the core. Must advance `.step` and `.seen`."""
        ...

    def evaluate(self, state: S, batch: Batch) -> Mapping[str, Mean]:
        """Metrics of one batch, over the examples where batch["mask"] is set."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, updates done.
      seen: uint32, examples trained on: the position in the data.
      key: the run's random key; a step uses fold_in(key, step).
      params: parameters that are trained, a nested dict.
      frozen: parameters that are not.
      mutable: other Linen collections, such as batch_stats.
      opt_state: of Optax.
      ema: exponential moving average of params, or None.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    frozen: Any
    mutable: Any
    opt_state: Any
    ema: Any


@dataclass(frozen=True)
class Aux:
    """What a loss returns beside its mean.

    Attributes:
      metrics: further means to log.
      mutable: updated Linen collections; {} leaves them as they are.
      penalty: a scalar added to the mean loss (weight penalty, load balance), or None.
    """

    metrics: Mapping[str, Mean] = field(default_factory=dict)
    mutable: Mapping[str, Any] = field(default_factory=dict)
    penalty: Array | None = None


jax.tree_util.register_dataclass(Aux, ["metrics", "mutable", "penalty"], [])


@dataclass(frozen=True, kw_only=True)
class LossTask:
    """A task given by its loss.

    The gradient is that of total / count + penalty over the whole batch: totals and counts are
    summed over micro-batches and devices and divided once, so it is exact under masks. (Batch
    norm, and losses that compare examples, see the micro-batch; with parallel=pmap, each device's
    part of it.)

    Attributes:
      freeze: regexes; a parameter whose whole path ("Dense_0/kernel") matches one is not trained.
      ema: decay of an exponential moving average of the parameters, which evaluation then uses;
        None keeps none. Early on the decay is (1 + step) / (10 + step) if that is less.
      accumulate: micro-batches that a batch is split into, to save memory.
      compute_dtype: type of activations and of the parameters they meet; the parameters that are
        kept, statistics, losses and sums of gradients stay float32. "auto" is bfloat16 where the
        hardware multiplies it faster, else float32 (`matmul.fast_dtype`). "float64" makes all of
        them float64, to tell rounding from a mistake; it needs JAX_ENABLE_X64=1. (In bfloat16 on
        CPU, XLA adds up the gradient of a bias over all places of an image in bfloat16, which loses
        much of it, and `check` says so; layers of Transformers add theirs in float32.)
      remat: what the backward pass recomputes to save memory: None nothing, else see `REMAT`. It
        is applied to the loss as a whole, for which "full" saves little, since all of it is
        recomputed at once; deep models have the same option for each block.
    """

    freeze: tuple[Regex, ...] = ()
    ema: Fraction | None = None
    accumulate: Size = 1
    compute_dtype: Literal["float32", "bfloat16", "float64", "auto"] = "float32"
    remat: Remat | None = None

    rngs: ClassVar[tuple[str, ...]] = ("dropout",)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        """The loss over the examples where batch["mask"] is set."""
        raise TypeError(f"{type(self).__name__} must define loss().")

    def apply(self, model: nn.Module, variables: dict[str, Any], *inputs: Any, key: Array,
              train: bool, **named: Any) -> tuple[Any, dict[str, Any]]:
        """(output, mutable) of model(*inputs, train=train, **named), a Linen model, in the compute
        dtype; a float output is float32 (or float64).

        When `variables` is empty, as in `init`, it is filled with the model's initial variables:
        so the one method `loss` also says how a model is initialised.
        """
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", *self.rngs))}
        auto = self.compute_dtype == "auto"
        dtype = jnp.dtype(fast_dtype(model) if auto else self.compute_dtype)
        exact = jnp.promote_types(dtype, jnp.float32)
        if exact == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise UserError("task.compute_dtype=float64 needs JAX_ENABLE_X64=1 in the environment.")
        if not variables:
            output, initial = model.init_with_output(keys, *inputs, train=False, **named)
            variables.update(_cast(initial, exact))
            return _cast(output, exact), {}
        cast = {**variables, "params": _cast(variables.get("params", {}), dtype)}
        inputs, named = _cast((inputs, named), dtype)
        if train:
            output, mutable = model.apply(cast, *inputs, train=True, rngs=keys, **named,
                                          mutable=[c for c in variables if c != "params"])
        else:
            output, mutable = model.apply(cast, *inputs, train=False, **named), {}
        return _cast(output, exact), dict(mutable)

    def freezes(self) -> tuple[str, ...]:
        """Regexes of what is not trained: `freeze`, and what the method itself keeps (a teacher,
        the weights under an adapter), which a task made of other tasks adds."""
        return self.freeze

    def init(self, key: Array, batch: Batch, tx: optax.GradientTransformation) -> TrainState:
        variables: dict[str, Any] = {}
        self.loss(variables, batch, jax.random.fold_in(key, 0), train=False)
        params = variables.pop("params")
        trained, frozen = partition(params, self.freezes())
        return TrainState(
            step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 1),
            params=trained, frozen=frozen, mutable=variables, opt_state=tx.init(trained),
            ema=None if self.ema is None else jax.tree.map(jnp.copy, trained))

    def step(self, state: TrainState, batch: Batch,
             tx: optax.GradientTransformation) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        size = batch["mask"].shape[0]

        def forward(params: Any, mutable: Any, batch: Batch, key: Array) -> tuple[Mean, Aux]:
            return self.loss({"params": merge(params, state.frozen), **mutable}, batch, key,
                             train=True)

        if self.remat is not None:
            forward = jax.checkpoint(forward, policy=REMAT[self.remat])

        def objective(params: Any, mutable: Any, batch: Batch, key: Array,
                      count: Any = None) -> tuple[Array, tuple[Mean, Aux]]:
            mean, aux = forward(params, mutable, batch, key)
            if count is None:
                count = over_devices(jax.lax.stop_gradient(mean.count))
            penalty = 0. if aux.penalty is None else aux.penalty / self.accumulate
            return mean.total / jnp.where(count > 0, count, 1) + penalty, (mean, aux)

        gradient = jax.grad(objective, has_aux=True)
        if self.accumulate == 1:
            grads, (mean, aux) = gradient(state.params, state.mutable, batch, key)
            mutable = {**state.mutable, **aux.mutable}
        else:
            # A count does not depend on the parameters: XLA drops the rest of this forward pass.
            count = over_devices(forward(state.params, state.mutable, batch, key)[0].count)
            # Micro-batch i takes every n-th example, so that no device has to send its own away.
            micro = jax.tree.map(lambda x: x.reshape(size // self.accumulate, self.accumulate,
                                                     *x.shape[1:]).swapaxes(0, 1), batch)

            def accumulate(carry: Any, xs: Any) -> tuple[Any, Any]:
                grads, mutable = carry
                batch, i = xs
                more, (mean, aux) = gradient(state.params, mutable, batch,
                                             jax.random.fold_in(key, i), count)
                grads = jax.tree.map(jnp.add, grads, more)
                return (grads, {**mutable, **aux.mutable}), (mean, replace(aux, mutable={}))

            # On CPU, gradients of convolutions inside a loop are many times slower: no loop there.
            unroll = jax.default_backend() == "cpu"
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (grads, mutable), stacked = jax.lax.scan(
                accumulate, (zeros, state.mutable), (micro, jnp.arange(self.accumulate)),
                unroll=self.accumulate if unroll else 1)
            mean, aux = jax.tree.map(lambda x: x.sum(0), stacked)
            if aux.penalty is not None:
                aux = replace(aux, penalty=aux.penalty / self.accumulate)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.ema is not None:
            decay = jnp.minimum(self.ema, (1. + state.step) / (10. + state.step))
            ema = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype),
                               state.ema, params)
        metrics: dict[str, Mean | Array] = {"loss": mean, **aux.metrics,
                                            "grad_norm": norm(over_devices(grads))}
        if aux.penalty is not None:
            metrics["penalty"] = aux.penalty
        return replace(state, step=state.step + 1, seen=state.seen + jnp.uint32(size),
                       params=params, mutable=mutable, opt_state=opt_state, ema=ema), metrics

    def evaluate(self, state: TrainState, batch: Batch) -> Mapping[str, Mean]:
        mean, aux = self.loss(self.variables(state), batch, state.key, train=False)
        return {"loss": mean, **aux.metrics}

    def variables(self, state: TrainState) -> dict[str, Any]:
        """What evaluation and prediction apply the model to: the average where one is kept."""
        trained = state.params if state.ema is None else state.ema
        return {"params": merge(trained, state.frozen), **state.mutable}


def over_devices(tree: Any) -> Any:
    """The mean over the devices, where each runs a program of its own."""
    axis = current().device_axis
    return tree if axis is None else jax.lax.pmean(tree, axis)


def norm(tree: Any) -> Array:
    """The Euclidean norm of all leaves together, at least in float32."""
    def squares(x: Array) -> Array:
        rows = jnp.abs(x)
        rows = jnp.square(rows.astype(jnp.promote_types(rows.dtype, jnp.float32)))
        # On CPU the first axis by itself becomes vector additions, a sum to a scalar does not.
        return jnp.sum(jnp.sum(rows, 0)) if rows.ndim > 1 else jnp.sum(rows)

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree))))


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype) if hasattr(x, "dtype")
                        and jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


# Paths: parameters are named "Dense_0/kernel", leaves of a state "params/Dense_0/kernel".


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def matching(paths: Any, patterns: tuple[str, ...], what: str) -> set[str]:
    """The paths that some pattern matches whole; a pattern that matches none is an error."""
    found: set[str] = set()
    for pattern in patterns:
        hits = {p for p in paths if re.fullmatch(pattern, p)}
        if not hits:
            raise UserError(f"{what}: {pattern!r} matches no parameter.{nearest(pattern, paths)}")
        found |= hits
    return found


def partition(params: Any, patterns: tuple[str, ...]) -> tuple[Any, Any]:
    """(the rest, those whose path matches a pattern), both as nested dicts."""
    if not patterns:
        return params, {}
    flat = traverse_util.flatten_dict(params, sep="/")
    out = matching(flat, patterns, "freeze")
    if len(out) == len(flat):
        raise UserError("freeze: matches every parameter, so there is nothing to train.")
    return (traverse_util.unflatten_dict({p: x for p, x in flat.items() if p not in out}, sep="/"),
            traverse_util.unflatten_dict({p: x for p, x in flat.items() if p in out}, sep="/"))


def merge(a: Any, b: Any) -> Any:
    """The union of two nested dicts with distinct leaves."""
    if not b:
        return a
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(a, sep="/"),
                                         **traverse_util.flatten_dict(b, sep="/")}, sep="/")
