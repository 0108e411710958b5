"""Generation in jaxdl, as `predict --prompt` does it; with --uncached the whole text is read again
for each token."""

import argparse
import sys
from pathlib import Path
from typing import Any

from worker import GPT, PROMPT, VOCABULARY, Job, generation, serve

import jax  # isort: skip  # after the allocator's settings
import jax.numpy as jnp
import numpy as np
from optax_step import count

sys.path.insert(0, str(Path(__file__).parents[1]))
import workloads

import jaxdl
from jaxdl.data.tokenizers import OfCharacters
from jaxdl.decode import Sampling
from jaxdl.prompt import Compiled, chunks

SAMPLING = Sampling(temperature=0.8)
TOKENIZER = OfCharacters((), "".join(map(chr, range(VOCABULARY))))


def build(workload: str, uncached: bool) -> Job:
    kind, rows, tokens = generation(workload)
    task: Any = workloads.EXPERIMENTS[kind]().task
    prompts = [np.arange(PROMPT, dtype=np.int32)] * rows
    variables = jax.jit(task.model.init, static_argnames="train")(
        jax.random.key(0), jnp.zeros((1, PROMPT), jnp.int32), train=False)
    compiled = Compiled(task.generator(variables, TOKENIZER), SAMPLING)

    @jax.jit
    def again(variables: Any, whole: Any, length: Any, keys: Any) -> Any:
        logits = task.model.apply(variables, whole, False)[:, length - 1]
        seen = jnp.zeros(logits.shape, bool)
        return whole.at[:, length].set(SAMPLING.draw(logits, seen, keys))

    def run(times: int) -> float:
        last: Any = 0.
        for i in range(times):
            keys = jax.random.split(jax.random.key(i), rows)
            if uncached:
                whole = jnp.full((rows, GPT["block"]), -1).at[:, :PROMPT].set(jnp.arange(PROMPT))
                for n in range(PROMPT, PROMPT + tokens):
                    whole = again(variables, whole, n, keys)
                last = np.asarray(whole)[0, -1]
            else:
                for lot in chunks(compiled, prompts, keys, tokens):
                    last = lot[0, -1]
        return float(last)

    return Job(lambda: count(variables["params"]), run, jax.devices()[0].device_kind,
               f"jaxdl {jaxdl.__version__}, jax {jax.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--uncached", action="store_true")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload, flags.uncached))
