"""nanoGPT's character model in PyTorch, at the sizes that its README gives for a CPU.

    python nanogpt_torch.py TOKENS.npz SEED

TOKENS.npz has "train" and "test", the numbers of characters. Prints the loss of the test text, in
nats a character, after 2,000 steps. Sizes, initial values and schedule are those of nanoGPT
(https://github.com/karpathy/nanoGPT: README, config/train_shakespeare_char.py, model.py).
"""

import math
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

STEPS, WARMUP, BATCH, BLOCK, LAYERS, HEADS, WIDTH = 2_000, 100, 12, 64, 4, 4, 128
PEAK, END = 1e-3, 1e-4


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (z.view(b, t, HEADS, d // HEADS).transpose(1, 2)
                   for z in self.qkv(self.norm1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """The output shares the embedding's weights."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                ends = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if ends else 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x) + self.places.weight[:x.shape[1]]
        return self.norm(self.layers(x)) @ self.tokens.weight.T


def main(path: str, seed: int) -> None:
    data = np.load(path)
    train, test = (torch.tensor(data[name].astype(np.int64)) for name in ("train", "test"))
    torch.manual_seed(seed)
    net = GPT(int(max(train.max(), test.max())) + 1)
    decayed = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                                   {"params": others, "weight_decay": 0.}], PEAK, (0.9, 0.99))
    for step in range(STEPS):
        t = (step - WARMUP) / (STEPS - WARMUP)
        rate = (PEAK * (step + 1) / (WARMUP + 1) if step < WARMUP
                else END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * t)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(len(train) - BLOCK, (BATCH,))
        rows = torch.stack([train[i:i + BLOCK + 1] for i in at])
        loss = F.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.3f}", file=sys.stderr)
    total = 0.
    with torch.inference_mode():  # Each row begins where the one before ends.
        for begin in range(0, len(test) - 1, BLOCK):
            row = test[begin:begin + BLOCK + 1]
            total += F.cross_entropy(net(row[None, :-1])[0], row[1:], reduction="sum").item()
    print(total / (len(test) - 1))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
