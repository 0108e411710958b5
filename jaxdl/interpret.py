"""What a network looks at: saliency, class activation, filters, preferred inputs, its last layer.

Each function takes `f`, a function of inputs that applies a Linen model in any way (a method of a
task, say), in evaluation mode, so that one example's output depends on no other example. Layers are
named by their module path ("stage3_block3/conv2"), and are reached while `f` runs: no model has to
be written for it. Everything but `activation_maximization` and `tsne` is pure and can be compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.errors import UserError, nearest

Array = jax.Array
Scores = Callable[[Array], Array]  # inputs [B, ...] -> a score of each: [B]
Outputs = Callable[[Array], Array]  # inputs [B, ...] -> outputs, such as logits [B, classes]


# Saliency: how much each number of the input matters to a score.


def gradient(f: Scores, x: Array) -> Array:
    """df(x) / dx, for each example: [B, ...].

    Simonyan et al. (2014), https://arxiv.org/abs/1312.6034, section 3, where the map of an image is
    the largest absolute value over its channels.
    """
    return jax.grad(lambda x: f(x).sum())(x)


def integrated_gradients(f: Scores, x: Array, baseline: Array | float = 0.,
                         steps: int = 32) -> Array:
    """(x - x') * integral over a in [0, 1] of df(x' + a (x - x')) / dx, for each example: [B, ...].

    Sundararajan et al. (2017), https://arxiv.org/abs/1703.01365, section 3. It is complete: the sum
    over an example is f(x) - f(x'), up to the error of the midpoint rule.

    Args:
      f: the score.
      x: inputs [B, ...].
      baseline: x', an input without information, of x's shape or broadcast to it.
      steps: points of the integral; all are computed at once, and take the memory of a batch of
        B * steps.
    """
    difference = x - baseline
    places = (jnp.arange(steps) + 0.5) / steps
    along = jax.vmap(lambda a: gradient(f, baseline + a * difference))(places)
    return difference * along.mean(0)


def smooth_grad(f: Scores, x: Array, key: Array, noise: Array | float = 0.15,
                samples: int = 32) -> Array:
    """The mean of df(x + e) / dx over normal e, for each example: [B, ...].

    Smilkov et al. (2017), https://arxiv.org/abs/1706.03825, section 2.

    Args:
      f: the score.
      x: inputs [B, ...].
      key: of the noise.
      noise: its standard deviation, as a part of max(x) - min(x) of the example; 0.1 to 0.2 in the
        paper.
      samples: drawn for each example, all computed at once.
    """
    axes = tuple(range(1, x.ndim))
    deviation = noise * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    drawn = jax.random.normal(key, (samples, *x.shape), x.dtype)
    return jax.vmap(lambda e: gradient(f, x + deviation * e))(drawn).mean(0)


# Layers of `f`, found while it runs.


@dataclass(frozen=True)
class Layer:
    """One call of a module.

    Attributes:
      module: that was called, without its variables.
      shape: of what it returned.
    """

    module: nn.Module
    shape: tuple[int, ...]


def layers(f: Outputs, x: Any) -> dict[str, Layer]:
    """The modules with variables that return an array when `f` runs on x, by path, in the order in
    which they end; of one that is called several times the last call. Nothing is computed."""
    found: dict[str, Layer] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if (context.method_name == "__call__" and hasattr(output, "shape")
                and context.module.variables):
            path = "/".join(context.module.path)
            found.pop(path, None)
            found[path] = Layer(context.module.clone(parent=None), tuple(output.shape))
        return output

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda x: f(x), x)  # of a new function, which was not traced before
    found.pop("", None)  # the whole model
    return found


def _called(f: Outputs, x: Any, layer: str, change: Callable[[Array, Array], Array]) -> Array:
    """The value of f(x), with `change(first argument, output)` as the output of a layer."""
    seen = False

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal seen
        output = call(*args, **kwargs)
        if context.method_name != "__call__" or "/".join(context.module.path) != layer:
            return output
        seen = True
        return change(args[0] if args else next(iter(kwargs.values())), output)

    with nn.intercept_methods(watch):
        result = f(x)
    if not seen:
        known = layers(f, x)
        raise UserError(f"layer={layer!r}: the model has no such layer.{nearest(layer, known)} It "
                        f"has {', '.join(known)}.")
    return result


def last_spatial(f: Outputs, x: Any) -> str | None:
    """The layer of the last feature map [B, h, w, C] of more than one place: where Grad-CAM looks.
    None if there is no such layer."""
    maps = [path for path, layer in layers(f, x).items()
            if len(layer.shape) == 4 and layer.shape[1] * layer.shape[2] > 1]
    return maps[-1] if maps else None


def grad_cam(f: Scores, x: Array, layer: str) -> Array:
    """relu(sum over k of w_k A_k), where w_k is the mean over places of df / dA_k: [B, h, w].

    Selvaraju et al. (2017), https://arxiv.org/abs/1610.02391, section 3, equations 1 and 2. A, the
    output of the layer, is [B, h, w, C]; the map has its size, and not that of the image.

    Args:
      f: the score.
      x: inputs [B, ...].
      layer: path of a module; a UserError names the nearest if there is none of that name.
    """
    def shape(x: Array) -> Array:
        return layer_output(f, x, layer)

    zeros = jnp.zeros((known := jax.eval_shape(shape, x)).shape, known.dtype)
    if zeros.ndim != 4:
        raise UserError(f"layer={layer!r} returns {zeros.shape}: expected a feature map "
                        "[B, h, w, C].")

    def score(added: Array) -> tuple[Array, Array]:
        outputs: list[Array] = []

        def change(given: Array, output: Array) -> Array:
            outputs.append(output)
            return output + added

        total = _called(f, x, layer, change).sum()
        return total, outputs[-1]

    slopes, output = jax.grad(score, has_aux=True)(zeros)
    weights = slopes.mean((1, 2), keepdims=True)  # [B, 1, 1, C]
    return jax.nn.relu((weights * output).sum(-1))


def layer_output(f: Outputs, x: Array, layer: str) -> Array:
    """What a module returns while f(x) runs, such as the activations of a hidden layer: [B, ...].

    A module that is called several times counts with its last call.
    """
    outputs: list[Array] = []

    def keep(given: Array, output: Array) -> Array:
        outputs.append(output)
        return output

    _called(f, x, layer, keep)
    return outputs[-1]


def last_layer(f: Outputs, x: Array) -> Array:
    """What the last dense layer gets while f(x) runs, which is what the model knows of an example:
    [B, features]."""
    dense = [path for path, layer in layers(f, x).items() if isinstance(layer.module, nn.Dense)]
    if not dense:
        raise UserError("the model has no dense layer, so no last features.")
    inputs: list[Array] = []

    def keep(given: Array, output: Array) -> Array:
        inputs.append(given)
        return output

    _called(f, x, dense[-1], keep)
    return inputs[-1].reshape(len(x), -1)


def first_layer_filters(f: Outputs, x: Any) -> Array | None:
    """The kernels of the first convolution, or of a first dense layer over the flattened image, as
    pictures [filters, h, w, C], C being the channels of x [B, H, W, C]; None if neither is first.

    Krizhevsky et al. (2012), figure 3: smooth, oriented and coloured in a network that has learned,
    noise in one that has not.
    """
    def kernel(x: Array) -> Array | None:
        kernels: list[Array] = []

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            if isinstance(context.module, nn.Conv | nn.Dense) and context.method_name == "__call__":
                kernels.append(context.module.get_variable("params", "kernel"))
            return output

        with nn.intercept_methods(watch):
            f(x)
        return kernels[0] if kernels else None

    shape, found = tuple(x.shape[1:]), jax.jit(kernel)(x)  # what f does else is not computed
    if found is None:
        return None
    if found.ndim == 2 and len(shape) == 3 and found.shape[0] == int(np.prod(shape)):
        return found.T.reshape(-1, *shape)
    if found.ndim == 4 and found.shape[2] == shape[-1]:
        return found.transpose(3, 0, 1, 2)
    return None


# Inputs that a unit likes best.


def activation_maximization(
        f: Scores, x: Array, key: Array, *, steps: int = 128, step_size: float = 0.1,
        jitter: int = 1, l2: float = 0.01, variation: float = 0.05,
        low: Array | float = -np.inf, high: Array | float = np.inf) -> Array:
    """Inputs that raise the score: ascent of f(x) - l2 |x|^2 - variation TV(x) from x [B, H, W, C].

    Erhan et al. (2009), "Visualizing higher-layer features of a deep network", section 3; the
    random shifts and the total variation that keep noise away are in Olah et al. (2017), "Feature
    visualization", https://distill.pub/2017/feature-visualization. The gradient of each image is
    divided by its root mean square; |x|^2 and TV are means over the image. Steps run one by one:
    the gradients of convolutions are slow inside a compiled loop on CPU.

    Args:
      f: the score, such as one logit.
      x: where to begin, noise say; other images than [B, H, W, C] are not shifted.
      key: of the shifts.
      steps: of the ascent.
      step_size: root mean square of a change, in units of x; it falls to 0 along a half cosine.
      jitter: pixels by which the images are shifted at most, around the border.
      l2: weight of the mean square.
      variation: weight of the mean absolute difference of neighbours.
      low: least value of x.
      high: greatest value of x.
    """
    def objective(x: Array) -> Array:
        penalty = l2 * (x ** 2).mean(tuple(range(1, x.ndim)))
        for axis in (1, 2) if x.ndim == 4 else ():
            penalty += variation * jnp.abs(jnp.diff(x, axis=axis)).mean((1, 2, 3))
        return (f(x) - penalty).sum()

    @jax.jit
    def step(x: Array, key: Array, size: Array) -> Array:
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        axes = (1, 2) if x.ndim == 4 else ()
        moved = jnp.roll(x, shift[:len(axes)], axes) if axes else x
        slope = jax.grad(objective)(moved)
        scale = jnp.sqrt((slope ** 2).mean(tuple(range(1, x.ndim)), keepdims=True)) + 1e-12
        moved = jnp.clip(moved + size * slope / scale, low, high)
        return jnp.roll(moved, -shift[:len(axes)], axes) if axes else moved

    for i in range(steps):
        size = step_size * 0.5 * (1 + np.cos(np.pi * i / steps))
        x = step(x, jax.random.fold_in(key, i), jnp.float32(size))
    return x


# The last layer in the plane.


def pca(features: Any, dimensions: int = 2) -> tuple[Array, Array]:
    """(coordinates [N, dimensions], parts of the variance [dimensions]) of features [N, D].

    The projections on the directions of the greatest variance: of X - mean = U S V', U S. The sign
    of a direction is such that its largest entry is positive. Pearson (1901).
    """
    x = jnp.asarray(features, jnp.float32)
    _, s, v = jnp.linalg.svd(x - x.mean(0), full_matrices=False)
    largest = jnp.take_along_axis(v, jnp.abs(v).argmax(1)[:, None], 1)
    v = (v * jnp.sign(largest))[:dimensions]
    return (x - x.mean(0)) @ v.T, s[:dimensions] ** 2 / jnp.maximum((s ** 2).sum(), 1e-30)


def tsne(features: Any, seed: int = 0, perplexity: float = 30.) -> np.ndarray:
    """t-SNE of features [N, D] in the plane, by scikit-learn: [N, 2]. Seconds for 1,000 points.

    van der Maaten and Hinton (2008), section 3: neighbours stay neighbours; distances between
    clusters, and their sizes, mean nothing.
    """
    from sklearn.manifold import TSNE

    points = np.asarray(features, np.float32)
    few = min(perplexity, max(1., (len(points) - 1) / 3))
    return TSNE(2, perplexity=few, init="pca", random_state=seed).fit_transform(points)
