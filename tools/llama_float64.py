"""The forward pass of a Llama-family checkpoint in plain float64, for those who compare the engine with something independent of it.

Layout: rows are positions; queries, keys and values are [rows, heads, head_dim]. Nothing is cached, fused or approximated; slow.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def read_safetensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, as float64. bf16, f16 and f32."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        raw = file.read_bytes()
        (header_bytes,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + header_bytes])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            data = raw[begin:end]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


class LlamaFloat64:
    """A Llama-family checkpoint (Llama, Qwen3: q and k norms) without rope scaling."""

    def __init__(self, directory: Path):
        self.config = json.loads((directory / "config.json").read_text())
        self.w = read_safetensors(directory)
        c = self.config
        self.layers = c["num_hidden_layers"]
        self.q_heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads", self.q_heads)
        self.dim = c.get("head_dim") or c["hidden_size"] // self.q_heads
        self.group = self.q_heads // self.kv_heads
        half = self.dim // 2
        self.frequencies = c.get("rope_theta", 10000.0) ** (-2.0 * np.arange(half) / self.dim)
        head = "model.embed_tokens.weight" if c.get("tie_word_embeddings") else "lm_head.weight"
        self.head = self.w[head]

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x: [..., heads, dim] with positions [...]: half-split pairs."""
        angle = np.asarray(positions)[..., None, None] * self.frequencies
        a, b = x[..., : self.dim // 2], x[..., self.dim // 2 :]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def layer(self, i: int, name: str) -> np.ndarray:
        return self.w[f"model.layers.{i}.{name}.weight"]

    def qkv(self, i: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Before rotation: q [rows, q_heads, dim], k and v [rows, kv_heads, dim]."""
        h = self.norm(x, self.layer(i, "input_layernorm"))
        q, k, v = (h @ self.layer(i, f"self_attn.{p}_proj").T for p in "qkv")
        q, k, v = q.reshape(len(x), self.q_heads, -1), k.reshape(len(x), self.kv_heads, -1), v.reshape(len(x), self.kv_heads, -1)
        if f"model.layers.{i}.self_attn.q_norm.weight" in self.w:
            q, k = self.norm(q, self.layer(i, "self_attn.q_norm")), self.norm(k, self.layer(i, "self_attn.k_norm"))
        return q, k, v

    def finish_layer(self, i: int, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        x = x + attended.reshape(len(x), -1) @ self.layer(i, "self_attn.o_proj").T
        h = self.norm(x, self.layer(i, "post_attention_layernorm"))
        gate = h @ self.layer(i, "mlp.gate_proj").T
        return x + (gate / (1 + np.exp(-gate)) * (h @ self.layer(i, "mlp.up_proj").T)) @ self.layer(i, "mlp.down_proj").T

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self.norm(x, self.w["model.norm.weight"]) @ self.head.T

    def attend_causal(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Full attention over a prompt: values [rows, q_heads, dim] and probabilities [q_heads, rows, rows]."""
        rows = np.arange(len(q))
        q, k = self.rotate(q, rows), np.repeat(self.rotate(k, rows), self.group, 1)
        scores = np.einsum("thd,jhd->htj", q, k) / np.sqrt(self.dim)
        scores[:, rows[:, None] < rows[None, :]] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return np.einsum("htj,jhd->thd", p, np.repeat(v, self.group, 1)), p
