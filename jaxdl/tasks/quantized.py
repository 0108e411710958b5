"""Training of a network that computes in few bits (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3)."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import quantize
from jaxdl.config import Fraction, Regex
from jaxdl.quantize import KERNELS, Bits
from jaxdl.task import Aux, Batch, Mean, TrainState, matching, named
from jaxdl.tasks.wrapped import Wrapped

Array = jax.Array

RANGES = "quantization"  # the collection of running ranges
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv)


@dataclass(frozen=True, kw_only=True)
class QuantizationAware(Wrapped):
    """The loss of the network with its kernels rounded as `jaxdl.quantize` does, and where wanted
    the inputs of their layers.

    The gradient passes the rounding unchanged (the straight-through estimator, Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432), so the weights that are kept are not rounded and move by less
    than a step. All that is evaluated or predicted is of the rounded network.

    An input x has one range [low, high] for the whole array, which holds 0 and follows those of
    the batches (section 3.1): with step = (high - low) / (2 ** bits - 1),

        x ~ step * (q - zero)    q = clip(round(x / step) + zero, 0, 2 ** bits - 1)

    and zero = round(-low / step) (equation 1). It lies in the state's collection "quantization".
    What is out of range has no gradient.

    Attributes:
      bits: of each weight.
      activation_bits: of the inputs of Dense and Conv layers with such kernels; None leaves them.
      decay: of the running ranges.
      only: regexes of the kernels that are rounded, of parameters of two and more dimensions.
    """

    not_applicable: ClassVar[Mapping[str, str]] = {
        "finite_differences": "the straight-through gradient is not that of the rounded network"}

    bits: Bits = 8
    activation_bits: Bits | None = None
    decay: Fraction = 0.99
    only: tuple[Regex, ...] = KERNELS

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        fresh = not variables
        with nn.intercept_methods(self.inputs(batch["mask"])):
            found = super().loss(variables, batch, key, train=train)
        if fresh:
            matching([path for path, x in named(variables["params"]).items() if x.ndim >= 2],
                     self.only, "task.only")
        return found

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The rounded network, through which the gradient passes to the weights."""
        params = variables["params"]
        return {**variables, "params": jax.tree.map(straight_through, self.rounded(params), params)}

    def rounded(self, params: Any) -> Any:
        """The parameters of the rounded network."""
        return quantize.rounded(params, self.bits, self.only)

    def inputs(self, mask: Array | None) -> Callable[..., Any]:
        """What rounds the inputs of layers, and where statistics may change follows their ranges,
        over the examples where mask [B] is set."""
        def round_input(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer, bits = context.module, self.activation_bits
            path = "/".join((*layer.path, "kernel"))
            if bits is None or context.method_name != "__call__" or not isinstance(
                    layer, LAYERS) or not any(re.fullmatch(p, path) for p in self.only):
                return call(*args, **kwargs)
            if not layer.is_initializing() and not layer.has_variable(RANGES, "inputs"):
                return call(*args, **kwargs)  # of another network, such as a teacher
            kept = layer.variable(RANGES, "inputs", jnp.zeros, (2,))
            x, *others = args
            if layer.is_mutable_collection(RANGES) and not layer.is_initializing():
                kept.value = self.followed(kept.value, x, mask)
            return call(in_steps(x, kept.value, bits), *others, **kwargs)

        return round_input

    def followed(self, old: Array, x: Array, mask: Array | None) -> Array:
        """The running range (low, high) after one more input x [B, ...]; that of the first counts
        whole."""
        x = jax.lax.stop_gradient(x).astype(old.dtype)
        if mask is not None and len(mask) == len(x):
            x = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, 0)
        new = jnp.stack([jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)])
        return jnp.where(old[0] < old[1], self.decay * old + (1 - self.decay) * new, new)

    # What the task inside does with a state, it does with rounded inputs, too.

    def of_rounded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """function(*args, **kwargs) with the inputs of layers rounded."""
        with nn.intercept_methods(self.inputs(None)):
            found = function(*args, **kwargs)
            return list(found) if inspect.isgenerator(found) else found

    def evaluate(self, state: TrainState, batch: Batch) -> Mapping[str, Mean]:
        return self.of_rounded(super().evaluate, state, batch)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name == "exported":
            told = found()
            return lambda: dataclasses.replace(told, outputs=functools.partial(
                self.of_rounded, told.outputs))
        return functools.partial(self.of_rounded, found) if inspect.isroutine(found) else found


def straight_through(value: Array, x: Array) -> Array:
    """`value` to the last bit, with the gradient of x."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))


def in_steps(x: Array, limits: Array, bits: int) -> Array:
    """x [...] in 2 ** bits equal steps of the range (low, high); as it is if that is not known."""
    low, high = limits
    most = 2 ** bits - 1
    step = jnp.where(high > low, high - low, 1) / most
    zero = jnp.round(-low / step)
    exact = x.astype(limits.dtype)
    steps = jnp.clip(jnp.round(exact / step) + zero, 0, most) - zero
    inside = jnp.clip(exact, -zero * step, (most - zero) * step)
    return jnp.where(high > low, straight_through(steps * step, inside), exact).astype(x.dtype)
