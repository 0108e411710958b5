"""Images through jaxdl's two ways of reading, and through Grain image by image."""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from worker import Job, images, serve

import jax  # isort: skip
import numpy as np

from jaxdl.data.loader import ahead, shuffled
from jaxdl.data.source import Arrays, Records, Source, assemble
from jaxdl.data.transforms import Flip, Normalise, PadCrop

BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRANSFORMS = (PadCrop(pad=4), Flip(), Normalise(mean=MEAN, std=STD))


class Examples(Sequence[Mapping[str, np.ndarray]]):
    """Images in host memory, as a stand-in for those in a file."""

    def __init__(self) -> None:
        self.x, self.y = images()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: Any) -> Any:
        return {"image": self.x[i], "label": self.y[i]}

    def __getitems__(self, ids: Sequence[int]) -> list[Any]:
        return [self[i] for i in ids]


class Vectorised(Records):
    """Reads a batch of ids by one indexing operation."""

    def read(self, index: np.ndarray) -> Any:
        return self.examples[index]


def job(run: Any) -> Job:
    return Job(lambda: 0, run, jax.devices()[0].device_kind, f"jax {jax.__version__}")


def jaxdl_source(form: str) -> Job:
    """Batches as the compiled step makes them: `assemble`, jitted by itself."""
    examples = Examples()
    source: Source
    if form == "step":
        source = Arrays(arrays={"image": examples.x, "label": examples.y}, transforms=TRANSFORMS)
    else:
        kind = Vectorised if form == "read" else Records
        source = kind(examples=examples, transforms=TRANSFORMS)
    arrays = jax.device_put(source.arrays)
    compiled = jax.jit(lambda arrays, inputs, key: assemble(source, arrays, inputs, key))
    key = jax.random.key(0)
    stream = ahead(source, shuffled(source, 0, 0, BATCH, 10_000_000))

    def run(batches: int) -> float:
        batch: Any = None
        for inputs in itertools.islice(stream, batches):
            batch = compiled(arrays, inputs, key)
            jax.block_until_ready(batch)  # so that no more than one is in the making
        return float(batch["image"].mean())

    return job(run)


def grain_items() -> Job:
    """Grain as its guide has it: one image at a time, in threads, then batched."""
    import grain

    examples = Examples()
    mean, std = np.float32(MEAN), np.float32(STD)

    class Augment(grain.transforms.RandomMap):
        def random_map(self, element: Any, rng: np.random.Generator) -> Any:
            x = np.pad(element["image"], ((4, 4), (4, 4), (0, 0)))
            top, left = rng.integers(0, 9, 2)
            x = x[top:top + 32, left:left + 32]
            x = x[:, ::-1] if rng.random() < 0.5 else x
            return {**element, "image": (x.astype(np.float32) / 255 - mean) / std}

    data = (grain.MapDataset.source(examples).seed(0).shuffle().repeat().random_map(Augment())
            .batch(BATCH, drop_remainder=True))
    stream = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    def run(batches: int) -> float:
        batch: Any = None
        for _ in range(batches):
            batch = next(stream)
        return float(batch["image"].mean())

    return job(run)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--form", choices=("step", "read", "rows", "grain"), required=True)
    flags = parser.parse_args()
    serve(grain_items if flags.form == "grain" else lambda: jaxdl_source(flags.form))
