"""Any two methods together: each pair trains a few steps, and both have their effect.

What freezes stays, what is pruned is zero, and where a method only changes how the same numbers are
computed (accumulation, devices, trials at once, an average beside), they are the same numbers.
Gradients are those of finite differences, where the method has one.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxdl import parallel
from jaxdl.data.source import Arrays, Transform
from jaxdl.data.transforms import Mixup
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Constant
from jaxdl.prune import Pruned
from jaxdl.task import merge, named
from jaxdl.tasks.adversarial import AdversarialTraining, Attack
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.distillation import Distillation
from jaxdl.tasks.lora import LoRA
from jaxdl.tasks.multi_task import MultiTask
from jaxdl.tasks.quantized import QuantizationAware
from jaxdl.tasks.sharpness import SAM
from jaxdl.train import Program

STEPS = 4
# Of tasks: the outer ones last.
WRAPPERS = "multi_task", "distillation", "lora", "quantization", "adversarial", "sam"
OTHERS = "freeze", "ema", "accumulation", "pruning", "mixup", "trials", "pmap"
SAME = "accumulation", "trials", "pmap"  # the same numbers, computed otherwise
# Each part of the batch is perturbed by its own gradient; images are mixed within it.
BY_PARTS = {"sam", "accumulation"}, {"sam", "pmap"}, {"mixup", "pmap"}
PAIRS = list(itertools.combinations((*WRAPPERS, *OTHERS), 2))

IMAGES = jax.random.uniform(jax.random.key(0), (16, 3, 3, 1))


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Sixteen examples in memory."""

    augment: tuple[Transform, ...] = ()
    stand_in: None = None

    def prepare(self) -> None: ...

    def open(self, split: str) -> Arrays:
        return Arrays(arrays={"image": np.asarray(IMAGES), "label": np.arange(16, dtype=np.int32)
                              % 3}, transforms=self.augment)

    def fingerprint(self) -> str:
        return "tiny"


def wrapped(methods: frozenset[str]) -> Any:
    """The task of these methods."""
    model = MLP(widths=(4,), classes=3)
    task: Any = Classification(model=model)
    if "distillation" in methods:
        task = Distillation(task=task, teacher=MLP(widths=(5,), classes=3), weight=0.5)
    if "multi_task" in methods:
        task = MultiTask(tasks={"a": task, "b": Classification(model=model)},
                         shared=("dense1/.*",), weights={"b": 0.5})
    if "lora" in methods:
        task = LoRA(task=task, targets=("(shared/)?dense1/kernel",), rank=2,
                    train=("(a/|b/)?head/.*",))
    if "quantization" in methods:
        task = QuantizationAware(task=task, bits=3, only=(".*dense1/kernel",))
    if "adversarial" in methods:
        task = AdversarialTraining(task=task, attack=Attack(
            radius=0.1, step=0.1, steps=1, random=False))
    if "sam" in methods:
        task = SAM(task=task, radius=0.2)
    options: dict[str, Any] = {}
    if "freeze" in methods:
        options["freeze"] = ("(a/)?head/bias",)
    if "ema" in methods:
        options["ema"] = 0.5
    if "accumulation" in methods:
        options["accumulate"] = 2
    return dataclasses.replace(task, **options)


def experiment(methods: frozenset[str]) -> Experiment:
    optimizer: Any = SGD(learning_rate=Constant(peak=0.3), momentum=0.5)
    if "pruning" in methods:
        optimizer = Pruned(optimizer=optimizer, sparsity=0.5, start=0.0, end=0.5, every=1)
    return Experiment(task=wrapped(methods), data=Tiny(augment=(Mixup(alpha=0.5, classes=3),)
                                                       if "mixup" in methods else ()),
                      optimizer=optimizer, steps=STEPS, batch_size=8, mesh=Mesh(data=2),
                      parallel="pmap" if "pmap" in methods else "jit")


@cache
def trained(methods: frozenset[str]) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    """The state before and after, by path; of two trials at once, that of the first."""
    one = experiment(methods)
    if "pmap" not in methods:
        one = dataclasses.replace(one, mesh=Mesh(data=1))
    source = one.data.open("train")
    devices = parallel.arrange(one.mesh, devices=jax.devices()[:one.mesh.data])
    trials = [(dataclasses.replace(one, seed=seed), source) for seed in (0, 1)] \
        if "trials" in methods else []
    program = Program(one, source, devices, trials=trials)
    carry, plan = program.init(program.knobs), program.plan(0, STEPS)
    states = [jax.device_get(state_of(carry.state, bool(trials)))]
    for i in range(STEPS):
        carry = program.advance(carry, [dict(plan[i])])
    states.append(jax.device_get(state_of(carry.state, bool(trials))))
    before, after = (named(state) for state in states)
    return before, after


def state_of(state: Any, trials: bool) -> Any:
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return jax.tree.map(lambda x: x[0], state) if trials else state


def weights_of(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {p: x for p, x in state.items() if p.startswith("params/")}


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_methods_together(pair: tuple[str, str]) -> None:
    same = () if set(pair) in BY_PARTS else tuple(x for x in pair if x in SAME)
    before, after = trained(frozenset(pair))
    assert all(np.isfinite(x).all() for x in after.values())
    for path, x in after.items():
        if path.startswith("frozen/"):
            np.testing.assert_array_equal(x, before[path], path)
    moved = [p for p, x in weights_of(after).items() if (x != before[p]).any()]
    assert moved
    if "freeze" in pair:
        assert any(p.endswith("head/bias") for p in after if p.startswith("frozen/"))
    if "pruning" in pair:
        kernels = [x for p, x in weights_of(after).items() if p.endswith("kernel")]
        zeros, size = (sum(f(x) for x in kernels) for f in (lambda x: (x == 0).sum(), np.size))
        assert 0.45 * size <= zeros <= 0.55 * size + 1
    if "lora" in pair:
        assert not any(p.endswith("dense1/kernel") for p in weights_of(after))
    if "ema" in pair:
        assert any((after[p.replace("params/", "ema/", 1)] != x).any()
                   for p, x in weights_of(after).items())
    for method in pair:
        alone = weights_of(trained(frozenset(pair) - {method})[1])
        together = weights_of(after)
        if method in same or method == "ema":
            assert alone.keys() == together.keys()
            for path, x in together.items():
                np.testing.assert_allclose(x, alone[path], rtol=2e-3, atol=2e-5, err_msg=path)
        elif alone.keys() == together.keys():  # It changes what is learned.
            assert any(np.abs(x - alone[p]).max() > 1e-4 for p, x in together.items()), method


# Quantization passes a gradient on that is none of its loss; the others do not change the gradient.
GRADIENTS = "multi_task", "distillation", "lora", "adversarial", "sam", "freeze", "accumulation"


@pytest.mark.parametrize("pair", [p for p in itertools.combinations(GRADIENTS, 2)
                                  if set(p) not in BY_PARTS], ids="+".join)
def test_a_step_follows_the_gradient_of_finite_differences(pair: tuple[str, str]) -> None:
    """In float64, of each parameter. The attack is one step along the sign of its own gradient, and
    SAM's is the gradient at the parameters after a step up it, both of finite differences too."""
    methods = frozenset(pair)
    tx, key = optax.sgd(1.), jax.random.key(1)
    with jax.enable_x64(True):
        image = IMAGES[:8].astype(jnp.float64)
        batch: Any = {"image": image, "label": jnp.arange(8) % 3, "index": jnp.arange(8),
                      "mask": jnp.ones(8).at[3].set(0)}
        task = dataclasses.replace(wrapped(methods), compute_dtype="float64")
        state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
                             task.init(key, batch, tx))
        params, unravel = ravel_pytree(state.params)
        params += 0.1 * jax.random.normal(key, params.shape, jnp.float64)  # LoRA starts at zero.
        state = dataclasses.replace(state, params=unravel(params))
        after = jax.jit(lambda state: task.step(state, batch, tx)[0].params)(state)
        plain = dataclasses.replace(wrapped(methods - {"adversarial", "sam", "accumulation"}),
                                    compute_dtype="float64")

        def loss(params: Any, image: Any, train: bool) -> Any:
            mean, _ = plain.loss({"params": merge(unravel(params), state.frozen)},
                                 {**batch, "image": image}, key, train=train)
            return mean.value()

        slopes = jax.jit(lambda params, image: differences(lambda p: loss(p, image, True), params))
        of_image = jax.jit(lambda params: differences(lambda x: loss(params, x, False), image))

        def gradient(params: Any) -> Any:
            if "adversarial" not in methods:
                return slopes(params, image)
            g = of_image(params)
            g = jnp.where(jnp.abs(g) > 1e-9, g, 0)  # Zero, where no unit that is on sees a pixel.
            return slopes(params, jnp.clip(image + 0.1 * jnp.sign(g), 0, 1))

        expected = gradient(params)
        if "sam" in methods:
            expected = gradient(params + 0.2 * expected / jnp.linalg.norm(expected))
        np.testing.assert_allclose(params - ravel_pytree(after)[0], expected, atol=1e-8)
        assert jnp.abs(expected).max() > 1e-3


def differences(function: Any, x: Any, h: float = 1e-5) -> Any:
    """The gradient at x by central differences."""
    steps = h * jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    up, down = (jax.vmap(lambda d, sign=sign: function(x + sign * d))(steps) for sign in (1, -1))
    return ((up - down) / (2 * h)).reshape(x.shape)
