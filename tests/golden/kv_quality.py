#!/usr/bin/env python3
"""Rung 5 of the KV policies' ladder, on a trained model and through the real binary: what each policy costs in perplexity and in facts found.

Text: a novel that the model has not seen, six windows of 512 tokens spread over it, each with a prompt of 128 and the rest forced one at a time. Facts: the 20 cases of
512 tokens with a five-digit key or a name to find. A case is right when the greedy output begins with the answer. The counts of a plain
float64 program stand beside each policy; the engine, in float32, must give them. Needs the shared folder (QUIRE_SHARED); exits with 77 without it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ.get("QUIRE_ROOT", Path(__file__).resolve().parents[2]))
BINARY = os.environ.get("QUIRE_BINARY", str(ROOT / "build" / "release" / "quire"))
SHARED = Path(os.environ.get("QUIRE_SHARED", ROOT.parent / "shared"))
MODEL = SHARED / "models" / "recall-9M"
TEXT = SHARED / "text" / "war_of_the_worlds.txt"
CASES = SHARED / "prompts" / "recall-9M_passkey.jsonl"

# Facts found of 20 at 512 tokens, by float64.
FACTS = {
    "none": 20,
    "window:size=128": 4,
    "stream:sinks=4,recent=124": 4,
    "tova:budget=128": 14,
    "tova:budget=32": 11,
    "h2o:heavy=64,recent=64": 13,
    "h2o:heavy=16,recent=16": 11,
}
WINDOW, CONTEXT, WINDOWS = 512, 128, 6
NOISE = 1.005  # half a percent: what a smaller budget may gain by luck


def quire(*arguments: object, stdin: str) -> str:
    done = subprocess.run([BINARY, *map(str, arguments)], input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"quire {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def generate(lines: list[dict]) -> list[dict]:
    text = "".join(json.dumps({"temperature": 0, "ignore_eos": True, **line}) + "\n" for line in lines)
    out = quire("generate", "--model", MODEL, "--input", "-", "--output", "jsonl", "--dtype", "f32", stdin=text)
    return [json.loads(line)["outputs"][0] for line in out.splitlines()]


def facts_found(cases: list[dict]) -> dict[str, int]:
    """All policies in one batch: they are mixed freely."""
    asked = [(policy, case) for policy in FACTS for case in cases]
    outputs = generate([{"token_ids": c["prompt_ids"], "max_tokens": len(c["answer_ids"]), "kv_policy": policy} for policy, c in asked])
    found = dict.fromkeys(FACTS, 0)
    for (policy, case), output in zip(asked, outputs, strict=True):
        found[policy] += output["token_ids"] == case["answer_ids"]
    return found


def policies_at(budget: int) -> dict[str, str]:
    half = budget // 2
    return {
        "window": f"window:size={budget}",
        "stream": f"stream:sinks=4,recent={budget - 4}",
        "tova": f"tova:budget={budget}",
        "h2o": f"h2o:heavy={half},recent={budget - half}",
    }


def perplexities(windows: list[list[int]]) -> dict[tuple[str, int], float]:
    budgets = [WINDOW, WINDOW // 2, WINDOW // 4, WINDOW // 8]
    asked = {("none", WINDOW): "none"} | {(name, budget): text for budget in budgets for name, text in policies_at(budget).items()}
    lines = [
        {"token_ids": w[:CONTEXT], "forced_token_ids": w[CONTEXT:], "max_tokens": WINDOW - CONTEXT, "logprobs": 0, "kv_policy": text}
        for text in asked.values()
        for w in windows
    ]
    losses = [-sum(entry["logprob"] for entry in output["logprobs"]) for output in generate(lines)]
    tokens = len(windows) * (WINDOW - CONTEXT)
    return {key: math.exp(sum(losses[i * len(windows) : (i + 1) * len(windows)]) / tokens) for i, key in enumerate(asked)}


def complaints_of_perplexity(found: dict[tuple[str, int], float]) -> list[str]:
    full, wrong = found["none", WINDOW], []
    for name in policies_at(WINDOW):
        curve = [(budget, found[name, budget]) for budget in (WINDOW, WINDOW // 2, WINDOW // 4, WINDOW // 8)]
        if curve[0][1] != full:
            wrong.append(f"{name} at {WINDOW} is {curve[0][1]}, full attention {full}: nothing is dropped, they must be equal")
        wrong += [f"{name}: {b} tokens give {p:.3f}, more than {b2} with {p2:.3f}" for (b, p), (b2, p2) in zip(curve, curve[1:]) if p > p2 * NOISE]
    for budget in (WINDOW // 4, WINDOW // 8):
        if found["stream", budget] >= found["window", budget]:
            wrong.append(f"sinks do not help at {budget}: stream {found['stream', budget]:.3f}, window {found['window', budget]:.3f}")
    return wrong


def main() -> int:
    missing = [str(path) for path in (MODEL, TEXT, CASES) if not path.exists()]
    if missing:
        print(f"not there: {', '.join(missing)} (set QUIRE_SHARED)")
        return 77
    cases = [case for line in CASES.read_text().splitlines() if 450 <= len((case := json.loads(line))["prompt_ids"]) <= 560]
    found = facts_found(cases)
    wrong = [f"{policy}: {found[policy]} facts of {len(cases)}; float64 finds {right}" for policy, right in FACTS.items() if found[policy] != right]
    text = quire("tokenize", "--model", MODEL, "--input", "-", "--no-special-tokens", "--output", "json", stdin=json.dumps([TEXT.read_text()]))
    ids = json.loads(text)[0]
    step = (len(ids) - WINDOW) // (WINDOWS - 1)
    values = perplexities([ids[i * step : i * step + WINDOW] for i in range(WINDOWS)])
    wrong += complaints_of_perplexity(values)
    print("facts of", len(cases), found)
    print("perplexity", {f"{name} {budget}": round(value, 3) for (name, budget), value in values.items()})
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
