"""nanoGPT's character model at its README's sizes for a CPU: jaxdl against PyTorch, same text.

    python benchmarks/nanogpt.py [--seeds=3]

Both train 2,000 steps of 12 rows of 64 characters on `Shakespeare` and are measured on the same
100,000 characters, each row beginning where the one before ends. jaxdl's is `gpt_char` with
`--steps=2000 --batch_size=12`; PyTorch's is `peers/nanogpt_torch.py`. Without --torch-python an
environment for it is made in ~/.cache/jaxdl/bench.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contest import PEERS, interpreters

from jaxdl.data.corpora import Shakespeare

ROOT = Path(__file__).parents[1]


def ours(folder: Path, seed: int) -> float:
    """Nats a character of jaxdl's run."""
    subprocess.run([sys.executable, ROOT / "launch.py", "--experiment=gpt_char", "--steps=2000",
                    "--batch_size=12", f"--seed={seed}", f"--workdir={folder}"], check=True,
                   stdout=subprocess.DEVNULL, cwd=ROOT)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return next(line["test/loss"] for line in reversed(list(lines)) if "test/loss" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.set_defaults(keras_python=None)
    flags = parser.parse_args()
    torch = interpreters(flags, ["torch"])["torch"]
    data = Shakespeare(block=64, test_characters=100_000)
    data.prepare()
    found: dict[str, list[float]] = {"jaxdl": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = data.content.tokens
        np.savez(folder / "tokens.npz", train=tokens("train")[0], test=tokens("test")[0][:100_000])
        for seed in range(flags.seeds):
            found["jaxdl"].append(ours(folder / f"run{seed}", seed))
            said = subprocess.run([torch, PEERS / "nanogpt_torch.py", folder / "tokens.npz",
                                   str(seed)], check=True, stdout=subprocess.PIPE, text=True)
            found["PyTorch"].append(float(said.stdout))
            print(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.4f}" for k, v in found.items()),
                  flush=True)
    print("| | nats a character | deviation |\n| --- | --- | --- |")
    for who, losses in found.items():
        deviation = f"{np.std(losses, ddof=1):.4f}" if len(losses) > 1 else ""
        print(f"| {who} | {np.mean(losses):.4f} | {deviation} |")


if __name__ == "__main__":
    main()
