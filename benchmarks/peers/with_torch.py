"""The workloads in PyTorch: eager, or with --compile."""

import argparse
from itertools import pairwise
from typing import Any

from worker import (
    CNN,
    LSTM,
    RATES,
    RESNETS,
    TRIALS,
    VOCABULARY,
    WIDTHS,
    Job,
    examples,
    is_text,
    matrices,
    serve,
    text,
)

import torch  # isort: skip  # after the allocator's settings
from torch import nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KIND = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


class Block(nn.Module):
    """Basic block of a ResNet."""

    def __init__(self, old: int, new: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(old, new, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(new)
        self.conv2 = nn.Conv2d(new, new, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(new)
        self.shortcut = nn.Identity() if old == new else nn.Sequential(
            nn.Conv2d(old, new, 1, stride, bias=False), nn.BatchNorm2d(new))

    def forward(self, x: Any) -> Any:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Layer(nn.Module):
    """One layer of the GPT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, d // self.heads).transpose(1, 2)
                   for z in self.qkv(self.norm1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Decoder with learned positions; the output shares the embedding's weights."""

    def __init__(self, layers: int, width: int, heads: int, block: int, **_: Any) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(block, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Any) -> Any:
        x = self.tokens(x) + self.positions.weight[:x.shape[1]]
        return self.norm(self.layers(x)) @ self.tokens.weight.T


class CharRNN(nn.Module):
    """Embedding, LSTM, output. PyTorch's LSTM has a second bias vector, of no further effect."""

    def __init__(self, width: int, embedding: int, **_: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, embedding)
        self.lstm = nn.LSTM(embedding, width, batch_first=True)
        self.out = nn.Linear(width, VOCABULARY)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(self.tokens(x))[0])


def network(workload: str) -> nn.Module:
    if workload in RESNETS:
        channels, stages = RESNETS[workload]
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1, bias=False),
                                  nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        for new, blocks, stride in stages:
            for i in range(blocks):
                parts.append(Block(channels, new, stride if i == 0 else 1))
                channels = new
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    if workload.startswith("gpt"):
        return GPT(**text(workload))
    if workload.startswith("lstm"):
        return CharRNN(**LSTM)
    if workload.startswith("mlp"):
        parts = []
        for old, new in pairwise(WIDTHS):
            parts += [nn.Linear(old, new), nn.ReLU()]
        return nn.Sequential(*parts[:-1])
    parts = []
    for old, new in pairwise(CNN):
        parts += [nn.Conv2d(old, new, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CNN[-1], 10))


def optimizer(workload: str, params: Any, rate: float = 0.01) -> torch.optim.Optimizer:
    if workload.startswith("gpt"):
        return torch.optim.AdamW(params, 1e-3, weight_decay=1e-2)
    if workload.startswith("lstm"):
        return torch.optim.Adam(params, 1e-3)
    return torch.optim.SGD(params, rate, momentum=0.9)


def products() -> Job:
    """A dense layer and its gradients, without anything around them."""
    x, w, g = (torch.tensor(a).to(DEVICE) for a in matrices())

    def run(count: int) -> float:
        result: Any = None
        for _ in range(count):
            result = x @ w, g @ w.T, x.T @ g
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return float(result[0][0, 0])

    return Job(w.numel, run, KIND, f"torch {torch.__version__}")


def build(workload: str, compiled: bool) -> Job:
    if workload == "products":
        return products()
    torch.manual_seed(0)
    trials = TRIALS if workload.endswith("_sweep") else 1
    x, y = (torch.tensor(a).to(DEVICE) for a in examples(workload))
    y = y.long().flatten()
    x = x.long() if is_text(workload) else x
    nets, steps = [], []
    for rate in RATES[:trials]:
        net = network(workload).to(DEVICE)
        if x.ndim == 4:
            net = net.to(memory_format=torch.channels_last)
        nets.append(net)
        steps.append((torch.compile(net) if compiled else net,
                      optimizer(workload, net.parameters(), rate if trials > 1 else 0.01)))
    if x.ndim == 4:  # [B, H, W, C] is the memory of channels_last already
        x = x.permute(0, 3, 1, 2)
        assert x.is_contiguous(memory_format=torch.channels_last)
    half = workload.endswith("_bf16")

    def run(count: int) -> float:
        loss: Any = None
        for _ in range(count):
            for net, tx in steps:
                tx.zero_grad(set_to_none=True)
                with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=half):
                    logits = net(x)
                    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), y)
                loss.backward()
                tx.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    parameters = sum(p.numel() for p in nets[0].parameters())
    if workload.startswith("lstm"):
        parameters -= 4 * LSTM["width"]  # the second bias vector
    return Job(lambda: parameters, run, KIND, f"torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--compile", action="store_true")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload, flags.compile))
