"""Batches a second from 50,000 images in memory: jaxdl against Grain and PyTorch's DataLoader.

    python benchmarks/input.py [--rounds=15] [--out=times.jsonl]

Each batch is 128 images of 32 x 32 x 3 bytes, cropped out of a margin of 4, flipped, and
normalised to float32. "in the step" gathers and augments inside a compiled function, here compiled
alone; "read" has the host gather a batch by one indexing operation, in threads, and augments in the
compiled function; "rows" is the same for collections that hand out one example after another.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from contest import arguments, chosen, compete, console, interpreters, interval, machine
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

BATCH = 128
GOAL = 8  # against the fastest of PyTorch
MEASURED = 7.5
CONTENDERS = {
    "jaxdl in the step": ("jax_input.py", "--form=step"),
    "jaxdl read": ("jax_input.py", "--form=read"),
    "jaxdl rows": ("jax_input.py", "--form=rows"),
    "grain by item": ("jax_input.py", "--form=grain"),
    "torch by item": ("torch_input.py",),
    "torch by item, 2 workers": ("torch_input.py", "--workers=2"),
    "torch by batch": ("torch_input.py", "--batched"),
    "torch by batch, 2 workers": ("torch_input.py", "--batched", "--workers=2")}


def main() -> None:
    flags = arguments(__doc__).parse_args()
    names = chosen(flags, list(CONTENDERS))
    with (flags.out or Path(os.devnull)).open("a") as records:
        print(json.dumps({"command": sys.argv, "time": time.time()}), file=records)
        results = compete("input", {n: CONTENDERS[n] for n in names}, interpreters(flags, names),
                          flags, records)
    peers = [r for r in results if r.name.startswith("torch")]
    best = min(peers, key=lambda r: np.median(r.seconds), default=None)
    table = Table("contender", "samples/s", "ms/batch", "ratio to fastest DataLoader",
                  "95 % interval", "goal (target)", box=MARKDOWN)
    for result in results:
        seconds = float(np.median(result.seconds))
        ratio = between = ""
        if best is not None:
            median, low, high = interval([b / a for a, b in zip(result.seconds, best.seconds,
                                                                strict=True)])
            ratio, between = f"{median:.2f}", f"{low:.2f} - {high:.2f}"
        table.add_row(result.name, f"{BATCH / seconds:,.0f}", f"{seconds * 1e3:.3g}", ratio,
                      between, f"{MEASURED} ({GOAL})" if result is results[0] else "")
    Console(width=160).print(table)
    console.print(f"{flags.rounds} rounds; {machine(results)}", highlight=False, markup=False,
                  soft_wrap=True)


if __name__ == "__main__":
    main()
