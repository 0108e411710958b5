"""ResNet-18 in Flax Linen up to its first step, as a plain script: the comparison of `start.py`."""

import time

began = time.perf_counter()

import jax  # noqa: E402
from optax_step import job  # noqa: E402
from with_linen import cross_entropy, examples, network  # noqa: E402

imported = time.perf_counter()
model, (x, y) = network("resnet18"), examples("resnet18")
variables = jax.jit(model.init)(jax.random.key(0), x[:1])
jax.block_until_ready(variables)
initialised = time.perf_counter()


def loss(params, statistics, x, y):  # type: ignore[no-untyped-def]
    logits, new = model.apply({"params": params, **statistics}, x, mutable=["batch_stats"])
    return cross_entropy(logits, y), dict(new)


step = job("resnet18", loss, variables["params"], {"batch_stats": variables["batch_stats"]},
           (x, y), "")
step.run(1)
print(f"first step done: import {imported - began:.2f}, init {initialised - imported:.2f}, "
      f"the rest {time.perf_counter() - initialised:.2f}", flush=True)
