"""Optimizers and schedules as values; every float in them may be a traced array.

An update is, in this order: clip the gradient's norm, add l2 * parameter, take the optimizer's
direction, add weight_decay * parameter, and step by -learning_rate(step). Statistics are Optax's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxdl.config import Fraction, NonNegative, Regex
from jaxdl.errors import UserError, nearest

Array = jax.Array
# In which a momentum is stored, None for the type of its parameter; it is computed in float32.
# Only a momentum: the small steps of a mean of squares would be lost in bfloat16's 8 bits.
Stored = Literal["float32", "bfloat16"] | None


class Schedule(Protocol):
    """A learning rate for each step; positions are fractions of the run."""

    def __call__(self, step: Array, steps: int) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """What all schedules share: a linear warm-up by which the schedule's own value is multiplied.

    Attributes:
      peak: the learning rate that the warm-up reaches.
      warmup: fraction of the run until then; 0 starts at the peak.
    """

    peak: NonNegative = 1e-3
    warmup: Fraction = 0.0

    def __call__(self, step: Array, steps: int) -> Array:
        step = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum(1.0, (step + 1) / jnp.maximum(self.warmup * steps, 1.0))
        return self.peak * ramp * self.decay(step / max(steps, 1))

    def decay(self, t: Array) -> Array:
        """The factor of the peak after the fraction t of the run."""
        raise TypeError(f"{type(self).__name__} must define decay().")

    def after_warmup(self, t: Array) -> Array:
        """How much of the time after the warm-up has passed, in [0, 1]."""
        return jnp.clip((t - self.warmup) / jnp.maximum(1 - self.warmup, 1e-9), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Constant(Warmup):
    """A constant learning rate.

    Attributes:
      peak: the learning rate.
      warmup: fraction of the run until it is reached.
    """

    def decay(self, t: Array) -> Array:
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class StepDecay(Warmup):
    """peak * factor ** (number of boundaries passed).

    Attributes:
      peak: learning rate until the first boundary.
      warmup: fraction of the run until the peak.
      at: boundaries, as fractions of the run.
      factor: by which the rate is multiplied at each.
    """

    at: tuple[Fraction, ...] = (0.5, 0.75)
    factor: NonNegative = 0.1

    def decay(self, t: Array) -> Array:
        passed = sum((t >= boundary).astype(jnp.float32) for boundary in self.at)
        return jnp.asarray(self.factor, jnp.float32) ** passed


@dataclass(frozen=True, kw_only=True)
class InverseTime(Warmup):
    """peak / (1 + rate * t): at the end of the run the rate is peak / (1 + rate).

    Attributes:
      peak: learning rate at the start.
      warmup: fraction of the run until the peak.
      rate: how strongly it decays over the whole run.
    """

    rate: NonNegative = 1.0

    def decay(self, t: Array) -> Array:
        return 1 / (1 + self.rate * t)


@dataclass(frozen=True, kw_only=True)
class Cosine(Warmup):
    """Half a cosine from peak to end * peak, after the warm-up (Loshchilov & Hutter 2017, eq. 5).

    Attributes:
      peak: learning rate after the warm-up.
      warmup: fraction of the run until the peak.
      end: fraction of the peak that remains.
    """

    end: NonNegative = 0.0

    def decay(self, t: Array) -> Array:
        return self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * self.after_warmup(t)))


@dataclass(frozen=True, kw_only=True)
class Linear(Warmup):
    """A straight line from peak to end * peak, after the warm-up.

    Attributes:
      peak: learning rate after the warm-up.
      warmup: fraction of the run until the peak.
      end: fraction of the peak that remains.
    """

    end: NonNegative = 0.0

    def decay(self, t: Array) -> Array:
        return 1 + (self.end - 1) * self.after_warmup(t)


@dataclass(frozen=True, kw_only=True)
class PathRule:
    """Multiplies the learning rate and the decays of the parameters whose path matches.

    Attributes:
      path: regex that the whole path matches, such as ".*/bias".
      learning_rate: factor of the learning rate.
      weight_decay: factor of weight_decay and of l2.
    """

    path: Regex
    learning_rate: NonNegative = 1.0
    weight_decay: NonNegative = 1.0


class Counted(NamedTuple):
    """The state of the last part of every optimizer: how many updates there were."""

    count: Any


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
      learning_rate: a schedule.
      clip: largest Euclidean norm of the whole gradient, None for no limit.
      l2: adds l2 * parameter to the gradient, so that it passes through momentum and scaling.
      weight_decay: subtracts learning_rate * weight_decay * parameter beside the optimizer's own
        step ("decoupled", Loshchilov & Hutter 2019).
      rules: factors for parameters by path; the first rule that matches counts.
    """

    learning_rate: Schedule = Constant()
    clip: NonNegative | None = None
    l2: NonNegative | None = None
    weight_decay: NonNegative | None = None
    rules: tuple[PathRule, ...] = ()

    def direction(self) -> optax.GradientTransformation:
        """The optimizer proper, to be stepped against."""
        raise TypeError(f"{type(self).__name__} must define direction().")

    def rescale(self) -> optax.GradientTransformation:
        """What follows the weight decay."""
        return optax.identity()

    def build(self, steps: int) -> optax.GradientTransformation:
        """The whole update, for a run of `steps`."""
        clip: Any = self.clip
        parts = [] if clip is None else [optax.clip_by_global_norm(clip)]
        if self.l2 is not None:
            parts.append(self._add_parameters(self.l2))
        parts.append(self.direction())
        if self.weight_decay is not None:
            parts.append(self._add_parameters(self.weight_decay))
        parts.append(self.rescale())
        parts.append(self._descend(steps))
        return optax.chain(*parts)

    def _add_parameters(self, factor: Any) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            factors = self._factors(params, lambda rule: rule.weight_decay)
            return jax.tree.map(lambda u, p, f: u + factor * f * p, updates, params, factors), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    def _descend(self, steps: int) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Counted]:
            rate = self.learning_rate(state.count, steps)
            factors = self._factors(updates, lambda rule: rule.learning_rate)
            return (jax.tree.map(lambda u, f: (-rate * f * u).astype(u.dtype), updates, factors),
                    Counted(optax.safe_increment(state.count)))

        return optax.GradientTransformation(lambda params: Counted(jnp.zeros([], jnp.int32)),
                                            update)

    def _factors(self, tree: Any, of: Callable[[PathRule], Any]) -> Any:
        paths = [jax.tree_util.keystr(p, simple=True, separator="/")
                 for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
        for rule in self.rules:
            if not any(re.fullmatch(rule.path, path) for path in paths):
                raise UserError(f"optimizer.rules: {rule.path!r} matches no trained parameter."
                                f"{nearest(rule.path, paths)}")
        found = [next((of(r) for r in self.rules if re.fullmatch(r.path, path)), 1.0)
                 for path in paths]
        return jax.tree.unflatten(jax.tree.structure(tree), found)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent: v = momentum * v + g, step along v (Sutskever et al. 2013).

    Attributes:
      momentum: None for none.
      nesterov: step along g + momentum * v instead.
      momentum_dtype: type in which the momentum is stored; bfloat16 halves its memory.
    """

    momentum: Fraction | None = None
    nesterov: bool = False
    momentum_dtype: Stored = None

    def direction(self) -> optax.GradientTransformation:
        if self.momentum is None:
            return optax.identity()
        return optax.trace(self.momentum, self.nesterov, self.momentum_dtype)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """g / sqrt(sum of squared gradients to date + eps) (Duchi et al. 2011).

    Attributes:
      initial: initial value of the sum.
      eps: added under the root.
    """

    initial: NonNegative = 0.1
    eps: NonNegative = 1e-7

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rss(self.initial, self.eps)


@dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """g / (sqrt(running mean of squared gradients) + eps) (Tieleman & Hinton 2012).

    Attributes:
      decay: of the running mean.
      eps: added to the root.
      momentum: of the scaled gradient, None for none.
    """

    decay: Fraction = 0.9
    eps: NonNegative = 1e-8
    momentum: Fraction | None = None

    def direction(self) -> optax.GradientTransformation:
        scale = optax.scale_by_rms(self.decay, self.eps, eps_in_sqrt=False)
        return scale if self.momentum is None else optax.chain(scale, optax.trace(self.momentum))


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1); its `weight_decay` is decoupled, as in AdamW.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the latter.
      nesterov: Nesterov momentum (NAdam, Dozat 2016).
      momentum_dtype: type in which the mean of gradients is stored; bfloat16 halves its memory.
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: NonNegative = 1e-8
    nesterov: bool = False
    momentum_dtype: Stored = None

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov,
                                   mu_dtype=self.momentum_dtype)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""

    weight_decay: NonNegative | None = 1e-2


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor: second moments of matrices kept as row and column means (Shazeer & Stern 2018).

    Attributes:
      decay_rate: exponent c of the decay 1 - t ** -c (section 7.2).
      threshold: largest root mean square of an update (section 6), None for no limit.
      relative: multiplies the step by the root mean square of the parameter (section 8).
      factored: whether to factor at all.
      factored_from: only dimensions of at least this size.
    """

    decay_rate: Fraction = 0.8
    threshold: NonNegative | None = 1.0
    relative: bool = True
    factored: bool = True
    factored_from: int = 128

    def direction(self) -> optax.GradientTransformation:
        parts = [optax.scale_by_factored_rms(self.factored, self.decay_rate,
                                             min_dim_size_to_factor=self.factored_from)]
        if self.threshold is not None:
            parts.append(optax.clip_by_block_rms(self.threshold))  # type: ignore[arg-type]
        if self.relative:
            parts.append(optax.scale_by_param_block_rms())
        return optax.chain(*parts)


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """The sign of b1 * m + (1 - b1) * g (Chen et al. 2023, algorithm 2).

    Attributes:
      b1: weight of the momentum in the step.
      b2: decay of the momentum.
      momentum_dtype: type in which the momentum is stored; bfloat16 halves its memory.
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.99
    momentum_dtype: Stored = None

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2, self.momentum_dtype)


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for matrices and convolutions, NAdam for the rest
    (Jordan 2024; scaled to Adam's step size by Liu et al. 2025, section 2.2).

    Attributes:
      beta: decay of the momentum.
      iterations: of Newton-Schulz.
      b1: of Adam.
      b2: of Adam.
      adam: regexes of parameters of two and more dimensions that Adam takes all the same.
      stacked: regexes of those whose first axis counts layers, as with a model's scan=True: each
        layer's part is a matrix of its own.
      momentum_dtype: type in which the momentum is stored; bfloat16 halves its memory.
    """

    beta: Fraction = 0.95
    iterations: int = 5
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    adam: tuple[Regex, ...] = (".*[Ee]mbed.*",)
    stacked: tuple[Regex, ...] = ("blocks/.*",)
    momentum_dtype: Stored = None

    def direction(self) -> optax.GradientTransformation:
        from optax.contrib import MuonDimensionNumbers, muon

        def dimensions(path: Any, x: Array) -> MuonDimensionNumbers | None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            first = int(any(re.fullmatch(pattern, name) for pattern in self.stacked))
            if x.ndim - first < 2 or any(re.fullmatch(pattern, name) for pattern in self.adam):
                return None
            return MuonDimensionNumbers(tuple(range(first, x.ndim - 1)), x.ndim - 1)

        return optax.chain(
            muon(1.0, ns_steps=self.iterations, beta=self.beta, adam_b1=self.b1, adam_b2=self.b2,
                 consistent_rms=0.2, mu_dtype=self.momentum_dtype,
                 muon_weight_dimension_numbers=lambda params:
                 jax.tree_util.tree_map_with_path(dimensions, params)),
            optax.scale(-1.0))  # muon() descends; a direction is stepped against.


@dataclass(frozen=True, kw_only=True)
class LAMB(Adam):
    """Adam's direction and the weight decay, scaled for each parameter array by the norm of the
    array over its own (You et al. 2020, algorithm 2)."""

    eps: NonNegative = 1e-6

    def rescale(self) -> optax.GradientTransformation:
        return optax.scale_by_trust_ratio()
