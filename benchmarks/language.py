"""Language models against PyTorch: training steps, generation, and what a token costs.

    python benchmarks/language.py [--parts train generate position] [--rounds=15] [--out=FILE]

- train: nanoGPT's character model (6 layers, 384 wide, block 256) and an LSTM of 256 units, as in
  `train.py`, against PyTorch eager and compiled.
- generate: 240 tokens after a prompt of 16, of one text and of eight at once, by `predict`'s code
  with its cache; against PyTorch with one, or with the LSTM's state, and, for one text, against the
  same network without a cache and PyTorch without one, as nanoGPT generates.
- position: milliseconds a token after ever more tokens, of that GPT with a block of 1,024.

Ratios are medians over rounds of those within a round. Without --torch-python an environment for
PyTorch is made in ~/.cache/jaxdl/bench.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import train
from contest import arguments, chosen, compete, console, interpreters, interval, machine
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

TRAINED = ("gpt", "lstm")
GENERATED = {"gpt_1": "GPT, one text", "gpt_8": "GPT, eight texts", "lstm_1": "LSTM, one text",
             "lstm_8": "LSTM, eight texts"}
TOKENS = 240  # of each, as worker.py has it
PLACES = (64, 128, 256, 512, 960)  # tokens before, and then 64 more


def contenders(workload: str) -> dict[str, tuple[str, ...]]:
    """The arguments of each contender's process."""
    jaxdl, torch = "generate_jaxdl.py", "generate_torch.py"
    if workload.startswith("lstm"):
        return {"jaxdl": (jaxdl,), "torch": (torch,), "torch tuned": (torch,)}
    found = {"jaxdl": (jaxdl,), "torch cache": (torch, "--cache"),
             "torch cache tuned": (torch, "--cache")}
    if workload == "gpt_1":  # Of several texts it takes minutes.
        found |= {"jaxdl without cache": (jaxdl, "--uncached"), "torch": (torch,),
                  "torch compiled": (torch, "--compile")}
    return found


def generated(workload: str, flags: Any, pythons: dict[str, str],
              records: Any) -> Iterator[tuple[str, ...]]:
    """Lines of the table of generation; ratios are to the fastest PyTorch."""
    everyone = contenders(workload)
    names = chosen(flags, list(everyone))
    results = train.related(
        compete(workload, {n: everyone[n] for n in names}, pythons, flags, records),
        [n for n in names if n.startswith("torch")])
    rows = int(workload.split("_")[1])
    for result in results:
        seconds = float(np.median(result.seconds))
        ratio = ("", "")
        if result.ratios:
            median, low, high = interval(result.ratios)
            ratio = f"{median:.2f}", f"{low:.2f} - {high:.2f}"
        yield (GENERATED[workload] if result is results[0] else "", result.name,
               f"{rows * TOKENS / seconds:,.0f}", f"{1e3 * seconds / TOKENS:.3g}", *ratio)
    console.print(machine(results), highlight=False, markup=False, soft_wrap=True)


def positions(rounds: int) -> Iterator[tuple[str, ...]]:
    """What a token costs after so many, with the cache of `predict` for 1,024."""
    import jax
    import jax.numpy as jnp
    import workloads

    from jaxdl import decode
    from jaxdl.data.tokenizers import OfCharacters
    from jaxdl.prompt import Compiled

    task: Any = workloads.gpt().task
    model = task.model.clone(block=1_024)
    variables = jax.jit(model.init, static_argnames="train")(
        jax.random.key(0), jnp.zeros((1, 8), jnp.int32), train=False)
    generator = type(task)(model=model).generator(
        variables, OfCharacters((), "".join(map(chr, range(model.vocabulary)))))
    compiled = Compiled(generator, decode.Sampling(temperature=0.8))
    keys = jax.random.split(jax.random.key(0), 1)
    seconds: dict[int, list[float]] = {place: [] for place in PLACES}
    for round_ in range(-1, rounds):  # the first one compiles
        going = compiled.begin(jnp.zeros((1, 64), jnp.int32), 1_024)
        for at in range(64, 1_024, 64):
            jax.block_until_ready(going)
            began = time.perf_counter()
            going, _ = compiled.more(going, keys, 64)
            jax.block_until_ready(going)
            if round_ >= 0 and at in seconds:
                seconds[at].append((time.perf_counter() - began) / 64)
    first = np.median(seconds[PLACES[0]])
    for place, found in seconds.items():
        yield f"{place:,}", f"{1e3 * np.median(found):.3g}", f"{np.median(found) / first:.2f}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=("train", "generate", "position"),
                        default=["train", "generate", "position"])
    flags = parser.parse_args()
    wide, began = Console(width=200), time.time()
    pythons = interpreters(flags, ["jax"] if flags.parts == ["position"] else ["jax", "torch"])
    with (flags.out or Path(os.devnull)).open("a") as records:
        print(json.dumps({"parts": flags.parts, "time": began}), file=records)
        if "train" in flags.parts:
            flags.contenders = flags.contenders or ["jaxdl", "torch"]
            table = Table("workload", "contender", "speed", "ms/step", "first step, s",
                          "ratio to fastest PyTorch", "95 % interval", box=MARKDOWN)
            for workload in TRAINED:
                for row in train.rows(workload, train.measure(workload, pythons, flags, records)):
                    table.add_row(*row[:7])
            wide.print(table)
        if "generate" in flags.parts:
            table = Table("workload", "contender", "tokens/s", "ms/token", "ratio to fastest "
                          "PyTorch", "95 % interval", box=MARKDOWN)
            for workload in GENERATED:
                for row in generated(workload, flags, pythons, records):
                    table.add_row(*row)
            wide.print(table)
        if "position" in flags.parts:
            table = Table("tokens before", "ms/token", "ratio to the first", box=MARKDOWN)
            for row in positions(flags.rounds):
                table.add_row(*row)
            wide.print(table)
    console.print(f"{flags.rounds} rounds, {(time.time() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
