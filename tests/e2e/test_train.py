"""The demo model's recipe runs: a tiny network learns from a text and loads in quire. Needs torch (not installed by ./quire)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(os.environ["QUIRE_ROOT"])
MISSING = [m for m in ("torch", "safetensors", "tokenizers") if importlib.util.find_spec(m) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"the training recipe needs {', '.join(MISSING)}, which ./quire does not install")
def test_a_tiny_model_learns_and_loads(tmp_path):
    texts = sorted((ROOT / "models").glob("*.md")) + sorted(ROOT.glob("*.md"))
    recipe = [sys.executable, str(ROOT / "models" / "train.py")]
    subprocess.run([*recipe, "prepare", str(tmp_path / "data"), *map(str, texts), "--vocab-size", "512"], check=True)
    subprocess.run(
        [*recipe, "train", str(tmp_path / "data"), str(tmp_path / "out"), "--tiny", "--seconds", "30", "--device", "cpu"], check=True
    )
    evaluation = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert evaluation["val_nll_128"] < 6.2, "a network that learned nothing sits at ln 512 = 6.24"
    generated = subprocess.run(
        [os.environ["QUIRE_BINARY"], "generate", "--model", str(tmp_path / "out"), "--prompt", "The", "--max-tokens", "4", "--output", "json"],
        check=True, capture_output=True, text=True,
    )
    assert json.loads(generated.stdout)["usage"]["completion_tokens"] == 4
    made, shipped = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (tmp_path / "out", ROOT / "models" / "demo"))
    assert made.keys() == shipped.keys(), "the recipe writes what is shipped"
