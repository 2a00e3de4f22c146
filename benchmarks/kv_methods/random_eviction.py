"""The baseline that every method must beat: who is dropped is drawn, not chosen. In float64, without the engine.

After the prompt, which is computed with full attention, each layer keeps `budget` of its positions at random; each later token is added and,
over the budget, one of the older ones goes. One list a layer, as under TOVA.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from llama_float64 import LlamaFloat64  # noqa: E402  (the path is set above)

ROWS = 256  # of a prompt's attention at once: bounds the memory of its scores


@dataclass
class Prompt:
    """A computed prompt: rotated keys and values by layer [tokens, kv_heads, dim], and the last row's logits."""

    tokens: int
    keys: list[np.ndarray]
    values: list[np.ndarray]
    logits: np.ndarray


class RandomEviction:
    def __init__(self, model: Path, seed: int):
        self.m = LlamaFloat64(model)
        self.seed = seed

    def attend(self, q: np.ndarray, first: int, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """q: [rows, q_heads, dim], rotated; row r sees keys[: first + r + 1]. Returns [rows, q_heads * dim]."""
        m, rows = self.m, len(q)
        grouped = q.reshape(rows, m.kv_heads, m.group, m.dim).transpose(1, 2, 0, 3).reshape(m.kv_heads, m.group * rows, m.dim)
        scores = (grouped @ keys.transpose(1, 2, 0) / np.sqrt(m.dim)).reshape(m.kv_heads, m.group, rows, len(keys))
        scores[..., np.arange(len(keys))[None, :] > first + np.arange(rows)[:, None]] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        seen = p.reshape(m.kv_heads, m.group * rows, -1) @ values.transpose(1, 0, 2)
        return seen.reshape(m.kv_heads, m.group, rows, m.dim).transpose(2, 0, 1, 3).reshape(rows, -1)

    def prefill(self, prompt: list[int]) -> Prompt:
        m, positions = self.m, np.arange(len(prompt))
        x = m.w["model.embed_tokens.weight"][prompt]
        keys, values = [], []
        for i in range(m.layers):
            q, k, v = m.qkv(i, x)
            q, k = m.rotate(q, positions), m.rotate(k, positions)
            keys.append(k)
            values.append(v)
            parts = [self.attend(q[at : at + ROWS], at, k[: at + ROWS], v[: at + ROWS]) for at in range(0, len(prompt), ROWS)]
            x = m.finish_layer(i, x, np.concatenate(parts))
        return Prompt(len(prompt), keys, values, m.logits(x[-1]))

    def decode(self, prompt: Prompt, budget: int, next_token, count: int) -> list[np.ndarray]:
        """Logits of `count` rows after the prompt's own; next_token(i, logits) names the i-th token given the logits before it."""
        m, rng = self.m, np.random.default_rng(self.seed)
        lists = []
        for i in range(m.layers):
            kept = np.sort(rng.permutation(prompt.tokens)[:budget])
            lists.append([prompt.keys[i][kept], prompt.values[i][kept]])
        rows = [prompt.logits]
        for step in range(count):
            x = m.w["model.embed_tokens.weight"][[next_token(step, rows[-1])]]
            position = np.array([prompt.tokens + step])
            for i in range(m.layers):
                q, k, v = m.qkv(i, x)
                keys = np.concatenate([lists[i][0], m.rotate(k, position)])
                values = np.concatenate([lists[i][1], v])
                x = m.finish_layer(i, x, self.attend(m.rotate(q, position), len(keys) - 1, keys, values))
                if len(keys) > budget:
                    gone = rng.integers(len(keys) - 1)
                    keys, values = np.delete(keys, gone, 0), np.delete(values, gone, 0)
                lists[i] = [keys, values]
            rows.append(m.logits(x[0]))
        return rows

    def losses(self, prompt: Prompt, forced: list[int], budget: int) -> list[float]:
        """Negative log-likelihood of each forced token, in nats."""
        rows = self.decode(prompt, budget, lambda step, _: forced[step], len(forced) - 1)
        return [float(np.logaddexp.reduce(row) - row[token]) for row, token in zip(rows, forced, strict=True)]

    def greedy(self, prompt: Prompt, count: int, budget: int) -> list[int]:
        rows = self.decode(prompt, budget, lambda _, logits: int(np.argmax(logits)), count - 1)
        return [int(np.argmax(row)) for row in rows]
