"""Generation in PyTorch: as nanoGPT does it (the whole text is read again for each token), and with
a cache of keys and values that lies ready for the longest text (--cache), or the state of an LSTM.
"""

import argparse
from typing import Any

from with_torch import DEVICE, KIND, network
from worker import GPT, LSTM, PROMPT, Job, generation, serve

import torch  # isort: skip
from torch.nn import functional as F


def cached(net: Any, tokens: Any, at: int, cache: Any) -> Any:
    """Logits [B, V] of the last of tokens [B, T] at places at ..., with a cache [L, 2, B, H, N, D];
    the keys and values of the tokens are put into it."""
    length = tokens.shape[1]
    x = net.tokens(tokens) + net.positions.weight[at:at + length]
    for layer, kept in zip(net.layers, cache, strict=True):
        b, t, d = x.shape
        q, k, v = (z.view(b, t, layer.heads, d // layer.heads).transpose(1, 2)
                   for z in layer.qkv(layer.norm1(x)).split(d, 2))
        kept[0, :, :, at:at + t], kept[1, :, :, at:at + t] = k, v
        y = F.scaled_dot_product_attention(q, kept[0, :, :, :at + t], kept[1, :, :, :at + t],
                                           is_causal=t > 1)
        x = x + layer.out(y.transpose(1, 2).reshape(b, t, d))
        x = x + layer.down(F.gelu(layer.up(layer.norm2(x)), approximate="tanh"))
    return net.norm(x[:, -1]) @ net.tokens.weight.T


def draw(logits: Any) -> Any:
    return torch.multinomial(F.softmax(logits / 0.8, -1), 1)


def build(workload: str, compiled: bool, cache: bool) -> Job:
    torch.manual_seed(0)
    kind, rows, count = generation(workload)
    net: Any = network(kind).to(DEVICE).eval()
    forward = torch.compile(net) if compiled else net
    prompt = torch.arange(PROMPT, device=DEVICE).expand(rows, PROMPT)

    def lstm() -> Any:
        x, state = net.lstm(net.tokens(prompt))
        token = draw(net.out(x[:, -1]))
        for _ in range(count - 1):
            x, state = net.lstm(net.tokens(token), state)
            token = draw(net.out(x[:, -1]))
        return token

    def gpt() -> Any:
        whole = prompt
        for _ in range(count):
            whole = torch.cat([whole, draw(forward(whole)[:, -1])], 1)
        return whole[:, -1:]

    def gpt_cached() -> Any:
        store = torch.empty(GPT["layers"], 2, rows, GPT["heads"], GPT["block"],
                            GPT["width"] // GPT["heads"], device=DEVICE)
        token = draw(cached(net, prompt, 0, store))
        for at in range(PROMPT, PROMPT + count - 1):
            token = draw(cached(net, token, at, store))
        return token

    def run(times: int) -> float:
        token: Any = None
        with torch.inference_mode():
            for _ in range(times):
                token = (lstm if kind == "lstm" else gpt_cached if cache else gpt)()
        return float(token[0, 0])

    parameters = sum(p.numel() for p in net.parameters())
    if kind == "lstm":
        parameters -= 4 * LSTM["width"]  # the second bias vector
    return Job(lambda: parameters, run, KIND, f"torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cache", action="store_true")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload, flags.compile, flags.cache))
