"""A tiny Llama with random weights, written where a test wants it: grouped queries, several layers, cheap enough for thousands of runs.

Random weights give attention that is near uniform. Here W_Q is larger by `sharpness`, so that rows choose, and what a policy keeps matters.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

VOCABULARY = 96


def weights(seed: int, hidden: int, layers: int, q_heads: int, kv_heads: int, dim: int, sharpness: float) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return draw.standard_normal((rows, columns)) * scale / np.sqrt(columns)

    out = {"model.embed_tokens.weight": draw.standard_normal((VOCABULARY, hidden)), "model.norm.weight": np.ones(hidden)}
    out["lm_head.weight"] = matrix(VOCABULARY, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}."
        out[layer + "input_layernorm.weight"] = out[layer + "post_attention_layernorm.weight"] = np.ones(hidden)
        out[layer + "self_attn.q_proj.weight"] = matrix(q_heads * dim, hidden, sharpness)
        for name in ("k_proj", "v_proj"):
            out[layer + f"self_attn.{name}.weight"] = matrix(kv_heads * dim, hidden)
        out[layer + "self_attn.o_proj.weight"] = matrix(hidden, q_heads * dim)
        out[layer + "mlp.gate_proj.weight"], out[layer + "mlp.up_proj.weight"] = matrix(2 * hidden, hidden), matrix(2 * hidden, hidden)
        out[layer + "mlp.down_proj.weight"] = matrix(hidden, 2 * hidden)
    return out


def write_model(folder: Path, *, seed: int = 1, hidden: int = 32, layers: int = 2, q_heads: int = 4, kv_heads: int = 2, sharpness: float = 4.0) -> Path:
    dim = 16
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": q_heads, "num_key_value_heads": kv_heads, "head_dim": dim, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
        "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, data = {}, b""
    for name, values in weights(seed, hidden, layers, q_heads, kv_heads, dim, sharpness).items():
        raw = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder
