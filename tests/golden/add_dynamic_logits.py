"""Adds to the golden of rope-dynamic the logits where its scaling acts: those of the greedy continuation, past max_position_embeddings.

usage: .venv/bin/python tests/golden/add_dynamic_logits.py     (seconds; no torch)

They come from tools/llama_float64.py, whose forward pass is independent of the engine's. Transformers rotates a token that is computed on
its own with the frequencies of its position + 1, and keeps the key as it was: so each position here has frequencies of its own. Written
only if this pass gives every stored logit of the prompt and every stored greedy id, which transformers made across the same positions.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from llama_float64 import LlamaFloat64  # noqa: E402

FOLDER = Path(__file__).parent / "families" / "rope-dynamic"
ROUNDING = 5e-6  # the golden has five digits after the point
FLOAT32 = 1e-5  # transformers computes norms, softmax and the rotation in float32 whatever the model's type


class Dynamic(LlamaFloat64):
    """With the rotation in float32, as transformers has it: base, frequencies, angles, cosines and sines."""

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rope, longest = self.config["rope_parameters"], self.config["max_position_embeddings"]
        half = self.dim // 2
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        angles = []
        for position in positions:
            stretch = rope["factor"] * max(position + 1, longest) / longest - (rope["factor"] - 1)
            base = np.float32(rope["rope_theta"] * stretch ** (self.dim / (self.dim - 2)))
            angles.append(np.float32(position) * (np.float32(1) / base**exponents))
        angle = np.array(angles, np.float32).astype(np.float64)
        cos, sin = (f(angle).astype(np.float32).astype(np.float64)[:, None, :] for f in (np.cos, np.sin))
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, ids: list[int]) -> np.ndarray:
        x = self.w["model.embed_tokens.weight"][ids]
        for i in range(self.layers):
            x = self.finish_layer(i, x, self.attend_causal(*self.qkv(i, x))[0])
        return self.logits(x)


def main() -> int:
    golden = json.loads((FOLDER / "golden.json").read_text())
    prompt, greedy = golden["prompt_ids"], golden["greedy_ids"]
    logits = Dynamic(FOLDER).forward(prompt + greedy)
    error = np.abs(logits[: len(prompt)] - np.array(golden["logits"])).max()
    chosen = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    print(f"prompt: largest difference from transformers' logits {error:.1e}, of which rounding {ROUNDING:.0e}; greedy ids equal: {chosen == greedy}")
    if error > ROUNDING + FLOAT32 or chosen != greedy:
        return 1
    golden["greedy_logits_made_with"] = "tests/golden/add_dynamic_logits.py (tools/llama_float64.py), float64"
    golden["greedy_logits"] = [[round(float(x), 5) for x in row] for row in logits[len(prompt) :]]
    (FOLDER / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
