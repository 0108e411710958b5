"""One contender of `train.py`: a process that answers "run so many steps" with the seconds it took.

The driver starts it, waits for the line `ready {...}`, then writes a number of steps and reads the
seconds, again and again; between two questions the process sleeps. Everything here works without
JAX and without PyTorch, so that each contender can live in an environment of its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALLOCATOR = "BENCHMARK_ALLOCATOR"  # "tuned": with the settings of jaxdl/allocator.py
sys.path.insert(0, str(Path(__file__).parents[2]))
if os.environ.get(ALLOCATOR) == "tuned":
    from jaxdl.allocator import keep_memory

    keep_memory()  # before the first large allocation, so before anything else is imported

import numpy as np  # noqa: E402

BATCH, CLASSES = int(os.environ.get("BENCHMARK_BATCH", "128")), 10
RESNETS = {  # channels of the stem, then (channels, blocks, stride) of each stage
    "resnet18": (64, ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))),
    "resnet20": (16, ((16, 3, 1), (32, 3, 2), (64, 3, 2)))}
WIDTHS = (784, 256, 128, 10)  # of the MLP
VOCABULARY = 65
GPT = {"layers": 6, "width": 384, "heads": 6, "block": 256, "batch": 12}
LSTM = {"width": 256, "embedding": 64, "block": 128, "batch": 64}
CNN = (3, 16, 32, 64)  # channels of the small CNN: 3 x 3 convolutions of stride 2
PROMPT, GENERATED = 16, 240  # tokens: together the block of the GPT
PRODUCTS = (3072, 384, 1536)  # rows, inputs and outputs of a dense layer of the GPT
TRIALS = int(os.environ.get("BENCHMARK_TRIALS", "8"))
RATES = tuple(float(x) for x in np.linspace(0.001, 0.1, TRIALS))  # learning rates of a sweep


def is_text(workload: str) -> bool:
    return workload.startswith(("gpt", "lstm"))


def text(workload: str) -> dict[str, int]:
    """The sizes of a model of text."""
    return GPT if workload.startswith("gpt") else LSTM


def generation(workload: str) -> tuple[str, int, int]:
    """(model, texts at once, tokens of each) of "gpt_1", "lstm_8", ..."""
    kind, rows = workload.split("_")
    return kind, int(rows), GENERATED


def examples(workload: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, labels) of so many random examples, of one batch if None.

    Images float32 [B, 32, 32, 3], vectors [B, 784], tokens int32 [B, T]; labels int32 [B], and for
    tokens the next ones [B, T].
    """
    random = np.random.default_rng(0)
    if is_text(workload):
        sizes = text(workload)
        tokens = random.integers(0, VOCABULARY, (count or sizes["batch"], sizes["block"] + 1),
                                 dtype=np.int32)
        return tokens[:, :-1], tokens[:, 1:]
    shape = (784,) if workload.startswith("mlp") else (32, 32, 3)
    x = random.standard_normal((count or BATCH, *shape), dtype=np.float32)
    return x, random.integers(0, CLASSES, len(x), dtype=np.int32)


def images() -> tuple[np.ndarray, np.ndarray]:
    """50,000 random images, uint8 [N, 32, 32, 3], and labels int32 [N], of `input.py`."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    return x, random.integers(0, CLASSES, len(x), dtype=np.int32)


def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [M, K], w [K, N] and the gradient of x w [M, N], float32."""
    random = np.random.default_rng(0)
    m, k, n = PRODUCTS
    x, w, g = (random.standard_normal(shape, dtype=np.float32) for shape in (
        (m, k), (k, n), (m, n)))
    return x, w, g


@dataclass
class Job:
    """What a contender has built.

    Attributes:
      parameters: counts those that are trained (of one trial), after the first step.
      run: does so many steps, waits until they are done, and returns the last loss.
      device: where it runs.
      version: of the framework.
    """

    parameters: Callable[[], int]
    run: Callable[[int], float]
    device: str
    version: str


def serve(build: Callable[[], Job]) -> None:
    """Builds, runs the first steps, then answers the driver until it hangs up.

    `first` is the time from here to the end of the first step: imports are done, everything else
    (parameters, tracing, compilation) is in it.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not get into the conversation
    began = time.perf_counter()
    job = build()
    job.run(1)
    first = time.perf_counter() - began
    for _ in range(2):
        job.run(1)
    ready: dict[str, Any] = {"parameters": job.parameters(), "first": first, "device": job.device,
                             "version": job.version}
    print("ready", json.dumps(ready), file=answers)
    for line in sys.stdin:
        began = time.perf_counter()
        loss = job.run(int(line))
        seconds = time.perf_counter() - began
        print(json.dumps([seconds, loss]), file=answers)
