"""Images through PyTorch's DataLoader: crop, flip and normalise for each image on its own.

The transforms are tensor operations, as torchvision's are. --batched gives the data set
`__getitems__`, which fetches a whole batch of indices in one call and transforms it at once.
"""

import argparse
import itertools
from typing import Any

from worker import Job, images, serve

import torch  # isort: skip
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


class Images(Dataset[Any]):
    def __init__(self) -> None:
        x, y = images()
        self.x, self.y = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), y.tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x = F.pad(self.x[i], (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        x = x[:, top:top + 32, left:left + 32]
        if torch.rand(()) < 0.5:
            x = x.flip(-1)
        return (x.float().div_(255) - MEAN) / STD, self.y[i]


class Batches(Images):
    def __getitems__(self, ids: list[int]) -> Any:
        x = F.pad(self.x[ids], (4, 4, 4, 4))
        n = len(ids)
        top, left = torch.randint(0, 9, (2, n, 1))
        rows, columns = top + torch.arange(32), left + torch.arange(32)  # [B, 32]
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
        x = x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        x = x.permute(0, 3, 1, 2).float().div_(255)  # [B, C, H, W]
        return (x - MEAN) / STD, torch.tensor([self.y[i] for i in ids])


def build(workers: int, batched: bool) -> Job:
    data = Batches() if batched else Images()
    loader = DataLoader(data, 128, shuffle=True, drop_last=True, num_workers=workers,
                        persistent_workers=workers > 0,
                        collate_fn=(lambda batch: batch) if batched else None)
    stream = itertools.chain.from_iterable(itertools.repeat(loader))

    def run(batches: int) -> float:
        total: Any = 0.
        for x, _ in itertools.islice(stream, batches):
            total = x
        return float(total.mean())

    return Job(lambda: 0, run, "cpu", f"torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batched", action="store_true")
    flags = parser.parse_args()
    serve(lambda: build(flags.workers, flags.batched))
