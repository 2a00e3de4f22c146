"""benchmarks/kv_methods/quality.py: its float64 baseline is the engine's full attention where nothing is dropped, and drops where it must."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import BINARY, MODEL, ROOT, generate

SCRIPT = ROOT / "benchmarks" / "kv_methods" / "quality.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[tuple[str, float], dict]:
    folder = tmp_path_factory.mktemp("quality")
    story = (ROOT / "models" / "demo_text.txt").read_text()[:400]  # the smallest budget, an eighth, must hold the sinks of a stream
    prompt = f"The pass key of Emma is 48213. {story} The pass key of Emma is"
    answer = generate("--prompt", prompt, "--max-tokens", 3, "--temperature", 0, "--ignore-eos")[0]
    case = {"kind": "key", "prompt_ids": answer["prompt_token_ids"], "answer_ids": answer["outputs"][0]["token_ids"]}
    (folder / "cases.jsonl").write_text(json.dumps(case) + "\n")
    command = [sys.executable, SCRIPT, "--binary", BINARY, "--model", MODEL, "--text", ROOT / "models" / "demo_text.txt", "--windows", 2, "--window", 96]
    command += ["--context", 32, "--passkeys", folder / "cases.jsonl", "--output", folder / "out.json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {(row["method"], row["fraction"]): row for row in json.loads((folder / "out.json").read_text())["rows"]}


def test_where_nothing_is_dropped_the_baseline_is_full_attention(rows):
    ours, plain = rows["full", 1.0]["perplexity"], rows["float64", 1.0]["perplexity"]
    assert plain["tokens"] == ours["tokens"] == 2 * 64
    assert plain["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-4)
    assert rows["full", 1.0]["passkeys"]["right"] == rows["float64", 1.0]["passkeys"]["right"] == 1


def test_the_less_is_kept_the_worse_the_text_is_foretold(rows):
    losses = [rows[("random" if fraction < 1 else "float64"), fraction]["perplexity"]["perplexity"] for fraction in (1.0, 0.25, 0.125)]
    assert losses[0] < losses[1] < losses[2]
