"""GPT-2's published weights: names and shapes, a NumPy forward pass, and there and back."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jaxdl import weights
from jaxdl.experiment import InitFrom
from jaxdl.init_from import overlay
from jaxdl.models.transformer import Transformer
from jaxdl.task import named
from jaxdl.tasks.language import LanguageModel

V, D, LAYERS, HEADS, BLOCK = 13, 8, 2, 2, 6
GPT = Transformer(vocabulary=V, width=D, layers=LAYERS, heads=HEADS, block=BLOCK, bias=True)
TASK = LanguageModel(model=GPT)
TOKENS = np.array([[1, 5, 12, 0, 7, 3]])


def published(draw=np.random.default_rng(0)):
    """Arrays with the names and shapes of GPT-2, as in the file model.safetensors of "gpt2"."""
    shapes = {"wte.weight": (V, D), "wpe.weight": (BLOCK, D), "ln_f.weight": (D,),
              "ln_f.bias": (D,)}
    for i in range(LAYERS):
        shapes |= {f"h.{i}.{name}": shape for name, shape in {
            "ln_1.weight": (D,), "ln_1.bias": (D,), "attn.c_attn.weight": (D, 3 * D),
            "attn.c_attn.bias": (3 * D,), "attn.c_proj.weight": (D, D), "attn.c_proj.bias": (D,),
            "ln_2.weight": (D,), "ln_2.bias": (D,), "mlp.c_fc.weight": (D, 4 * D),
            "mlp.c_fc.bias": (4 * D,), "mlp.c_proj.weight": (4 * D, D), "mlp.c_proj.bias": (D,),
        }.items()}
    found = {n: draw.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    causal = np.tril(np.ones((1, 1, BLOCK, BLOCK), np.float32))
    return found | {f"h.{i}.attn.bias": causal for i in range(LAYERS)}


def numpy_gpt2(w, tokens):
    """Radford et al. (2019), in float64, from the published names."""
    w = {n: np.asarray(x, np.float64) for n, x in w.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    x = w["wte.weight"][tokens] + w["wpe.weight"][:len(tokens)]
    for i in range(LAYERS):
        q, k, v = np.split(dense(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, -1)
        out, size = [], D // HEADS
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        x = x + dense(np.concatenate(out, -1), f"h.{i}.attn.c_proj")
        x = x + dense(gelu(dense(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@pytest.fixture(scope="module")
def state():
    batch = {"tokens": TOKENS, "next": TOKENS, "mask": jnp.ones(1)}
    return jax.jit(lambda: TASK.init(jax.random.key(0), batch, optax.sgd(1.)))()


def logits(state):
    return np.asarray(GPT.apply({"params": state.params}, TOKENS, False))[0]


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_file_of_gpt2_is_the_network_that_it_was(state, prefix, tmp_path, capsys):
    w = published()
    path = tmp_path / "model.safetensors"
    kept = {prefix + n: x for n, x in w.items()}
    if prefix:
        kept["lm_head.weight"] = w["wte.weight"]
    save_file(kept, path)
    found, line = overlay(state, InitFrom(path=str(path)), TASK)
    np.testing.assert_allclose(logits(found), numpy_gpt2(w, TOKENS[0]), atol=1e-4)
    assert "gpt2's names" in line and "28 arrays taken, 0 fresh, 0 unused" in line
    assert "do not fit" not in capsys.readouterr().out


def test_nanogpt_keeps_its_kernels_the_other_way(state, tmp_path):
    w = published()
    kept = {f"transformer.{n}": x.T.copy() if re.search(r"\.c_\w+\.weight", n) else x
            for n, x in w.items()} | {"lm_head.weight": w["wte.weight"]}
    save_file(kept, tmp_path / "ckpt.safetensors")
    found, line = overlay(state, InitFrom(path=str(tmp_path / "ckpt.safetensors")), TASK)
    assert "nanogpt's names" in line
    np.testing.assert_allclose(logits(found), numpy_gpt2(w, TOKENS[0]), atol=1e-4)


@pytest.mark.parametrize("library", ["gpt2", "nanogpt"])
def test_there_and_back(state, library, tmp_path):
    path = tmp_path / "mine.safetensors"
    flat = {f"params/{p}": x for p, x in named(state.params).items()}
    weights.write(path, flat, weights.of_model(GPT)[library], {})
    if library == "gpt2":
        assert load_file(path).keys() == {n for n in published() if ".attn.bias" not in n}
    other = jax.tree.map(jnp.zeros_like, state)
    found, _ = overlay(other, InitFrom(path=str(path)), TASK)
    chex.assert_trees_all_equal(found.params, state.params)


def test_what_is_missing_and_what_is_too_much(state, tmp_path, capsys):
    from jaxdl.errors import UserError

    w = published()
    del w["h.1.ln_2.bias"]
    w["h.2.ln_1.bias"] = w["ln_f.bias"]
    save_file(w, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"params/block2/norm2/bias is not in .*1 missing in all"):
        overlay(state, InitFrom(path=str(tmp_path / "model.safetensors")), TASK)
    table = capsys.readouterr().out
    assert "missing" in table and "h.2.ln_1.bias" in table and "unexpected" in table


def test_other_transformers_have_no_published_names():
    for model in (GPT.clone(positions="rotary"), GPT.clone(scan=True), GPT.clone(kv_heads=1)):
        assert not model.published
