"""How long a checkpoint keeps the training loop waiting, until it is durable, and is read back.

    python benchmarks/checkpoint.py [--millions 11 110] [--rounds=5] [--folder=DIR]

The state is float32 parameters and as large a momentum, 120 arrays. jaxdl's checkpoints and plain
Orbax (`CheckpointManager`, asynchronous) take turns in one process, with the allocator's settings.
"blocks" is the time that `save` takes, and "next step" what a step with a donated state right after
it takes longer than one without a save: a copy that was put off would show there. jaxdl's time
until durable includes fsync and a SHA-256 of every file; Orbax does neither. "restore" is the time
until all arrays are on the device, of jaxdl with the SHA-256 checked again. What is read back is
compared with what was saved.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import numpy as np
import orbax.checkpoint as orbax
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from jaxdl.allocator import keep_memory
from jaxdl.checkpoint import Checkpoints

ARRAYS = 60  # of parameters; as many of momentum
GOAL = 0.05  # seconds that 110 million parameters may block

State = dict[str, dict[str, Any]]


def state(millions: float) -> State:
    """Random numbers, as Orbax compresses."""
    random, size = np.random.default_rng(0), int(millions * 1e6) // ARRAYS
    return {kind: {f"layer{i}": jax.device_put(random.standard_normal(size, dtype=np.float32))
                   for i in range(ARRAYS)} for kind in ("params", "momentum")}


@jax.jit(donate_argnums=0)
def advance(state: State) -> State:
    return jax.tree.map(lambda x: x * np.float32(0.999), state)


class Jaxdl:
    name = "jaxdl"

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder, keep=1)

    def save(self, step: int, state: State) -> None:
        self.checkpoints.save(step, state, meta={})

    def wait(self) -> None:
        self.checkpoints.wait()

    def restore(self, target: Any) -> State:
        found = self.checkpoints.restore(target)
        assert found is not None
        return found[0]


class Orbax:
    name = "orbax"

    def __init__(self, folder: Path) -> None:
        self.manager = orbax.CheckpointManager(folder, options=orbax.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=True))

    def save(self, step: int, state: State) -> None:
        self.manager.save(step, args=orbax.args.StandardSave(state))

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def restore(self, target: Any) -> State:
        return self.manager.restore(self.manager.latest_step(),
                                    args=orbax.args.StandardRestore(target))


def timed(call: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(call(*inputs))
    return time.perf_counter() - began, result


def measure(kind: Any, folder: Path, step: int, current: State) -> tuple[dict[str, float], State]:
    """One save between steps, and one restore."""
    plain = [0.] * 3
    for i in range(3):
        plain[i], current = timed(advance, current)
    saved = {f"{k}/{n}": np.array(x[:1000]) for k, t in current.items() for n, x in t.items()}
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          current)
    began = time.perf_counter()
    kind.save(step, current)
    blocked = time.perf_counter() - began
    after, current = timed(advance, current)
    kind.wait()
    durable = time.perf_counter() - began
    seconds, restored = timed(kind.restore, target)
    for k, tree in restored.items():
        for n, x in tree.items():
            np.testing.assert_array_equal(np.array(x[:1000]), saved[f"{k}/{n}"])
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {"blocks": blocked, "next step": after - float(np.median(plain)), "durable": durable,
            "restore": seconds, "bytes": size}, current


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", nargs="+", type=float, default=[11, 110])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if left out")
    parser.add_argument("--out", type=Path, help="appends every measurement, as JSON lines")
    flags = parser.parse_args()
    keep_memory()
    table = Table("parameters", "", "blocks, s", "worst", "next step, s", "until durable, s",
                  "restore, s", "MB on disk", "goal of blocks", box=MARKDOWN)
    with (flags.out or Path(os.devnull)).open("a") as records:
        print(json.dumps({"command": sys.argv, "time": time.time()}), file=records)
        for millions in flags.millions:
            root = Path(tempfile.mkdtemp(dir=flags.folder))
            current = state(millions)
            kinds = [kind(root / kind.name) for kind in (Jaxdl, Orbax)]
            found: dict[str, list[dict[str, float]]] = {kind.name: [] for kind in kinds}
            for step in range(1, flags.rounds + 2):
                for kind in kinds[::1 if step % 2 else -1]:
                    numbers, current = measure(kind, root / kind.name, step, current)
                    if step > 1:  # the first one creates threads and compiles
                        found[kind.name].append(numbers)
                        print(json.dumps({"millions": millions, "kind": kind.name, **numbers}),
                              file=records, flush=True)
            shutil.rmtree(root)
            for name, rounds in found.items():
                middle = {k: float(np.median([r[k] for r in rounds])) for k in rounds[0]}
                table.add_row(
                    f"{millions:g} million" if name == "jaxdl" else "", name,
                    f"{middle['blocks']:.3f}", f"{max(r['blocks'] for r in rounds):.3f}",
                    f"{middle['next step']:.3f}", f"{middle['durable']:.2f}",
                    f"{middle['restore']:.2f}", f"{middle['bytes'] / 1e6:,.0f}",
                    f"{GOAL}" if name == "jaxdl" and millions == 110 else "")
    Console(width=160).print(table)
    print(f"{flags.rounds} rounds; {jax.devices()[0].device_kind}; jax {jax.__version__}, "
          f"orbax {orbax.__version__}")


if __name__ == "__main__":
    main()
