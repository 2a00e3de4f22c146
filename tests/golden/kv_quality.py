#!/usr/bin/env python3
"""Rung 5 of the KV policies' ladder, on a trained model and through the real binary: what each policy costs in perplexity and in facts found.

Text: a novel that the model has not seen, six windows of 512 tokens spread over it, each with a prompt of 128 and the rest forced one at a time. Facts: the 20 cases of
512 tokens with a five-digit key or a name to find. A case is right when the greedy output begins with the answer. The counts of a plain
float64 program stand beside each policy; the engine, in float32, must give them. Who chooses by scores must beat random eviction of the same
budget (benchmarks/kv_methods/random_eviction.py, float64, the same windows and cases): in perplexity and facts its mean over the seeds, in
five-digit keys its luckiest seed. Random eviction depends on nothing here but model, texts and seed, so its figures are read from RANDOM;
`kv_quality.py --random 5 > FILE` makes them again (needs numpy, some five minutes).
Needs the shared folder (QUIRE_SHARED); exits with 77 without it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(os.environ.get("QUIRE_ROOT", Path(__file__).resolve().parents[2]))
BINARY = os.environ.get("QUIRE_BINARY", str(ROOT / "build" / "release" / "quire"))
SHARED = Path(os.environ.get("QUIRE_SHARED", ROOT.parent / "shared"))
MODEL = SHARED / "models" / "recall-9M"
TEXT = SHARED / "text" / "war_of_the_worlds.txt"
CASES = SHARED / "prompts" / "recall-9M_passkey.jsonl"
RANDOM = ROOT / "benchmarks" / "results" / "kv_quality_random_2026-11-27.json"

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
BY_SCORES = {128: ("tova:budget=128", "h2o:heavy=64,recent=64"), 32: ("tova:budget=32", "h2o:heavy=16,recent=16")}
KEYS_AT = 128  # at 32 nobody finds a key: they are not compared
WINDOW, CONTEXT, WINDOWS = 512, 128, 6
BUDGETS = (WINDOW // 2, WINDOW // 4, WINDOW // 8)
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


def counts(cases: list[dict], answers: list[list[int]]) -> dict[str, int]:
    right = [case["kind"] for case, answer in zip(cases, answers, strict=True) if answer == case["answer_ids"]]
    return {"facts": len(right), "keys": right.count("key")}


def facts_found(cases: list[dict]) -> dict[str, dict[str, int]]:
    """All policies in one batch: they are mixed freely."""
    asked = [{"token_ids": c["prompt_ids"], "max_tokens": len(c["answer_ids"]), "kv_policy": policy} for policy in FACTS for c in cases]
    answers = [output["token_ids"] for output in generate(asked)]
    return {policy: counts(cases, answers[i * len(cases) : (i + 1) * len(cases)]) for i, policy in enumerate(FACTS)}


def policies_at(budget: int) -> dict[str, str]:
    half = budget // 2
    return {
        "window": f"window:size={budget}",
        "stream": f"stream:sinks=4,recent={budget - 4}",
        "tova": f"tova:budget={budget}",
        "h2o": f"h2o:heavy={half},recent={budget - half}",
    }


def perplexities(windows: list[list[int]]) -> dict[tuple[str, int], float]:
    asked = {("none", WINDOW): "none"} | {(name, budget): text for budget in (WINDOW, *BUDGETS) for name, text in policies_at(budget).items()}
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
        curve = [(budget, found[name, budget]) for budget in (WINDOW, *BUDGETS)]
        if curve[0][1] != full:
            wrong.append(f"{name} at {WINDOW} is {curve[0][1]}, full attention {full}: nothing is dropped, they must be equal")
        wrong += [f"{name}: {b} tokens give {p:.3f}, more than {b2} with {p2:.3f}" for (b, p), (b2, p2) in zip(curve, curve[1:]) if p > p2 * NOISE]
    for budget in BUDGETS[1:]:
        if found["stream", budget] >= found["window", budget]:
            wrong.append(f"sinks do not help at {budget}: stream {found['stream', budget]:.3f}, window {found['window', budget]:.3f}")
    return wrong


def complaints_beside_random(facts: dict[str, dict[str, int]], perplexity: dict[tuple[str, int], float], drawn: dict) -> list[str]:
    wrong = []
    for budget, policies in BY_SCORES.items():
        by_seed = drawn["cases"][str(budget)]
        usual, most_keys = mean(seed["facts"] for seed in by_seed), max(seed["keys"] for seed in by_seed)
        for policy in policies:
            found = facts[policy]
            if found["facts"] <= usual:
                wrong.append(f"{policy}: {found['facts']} facts; random eviction at {budget} finds {usual:.1f}")
            if budget == KEYS_AT and found["keys"] <= most_keys:
                wrong.append(f"{policy}: {found['keys']} keys of five digits; random eviction at {budget} finds {most_keys}")
    for budget in BUDGETS:
        usual = mean(drawn["perplexity"][str(budget)])
        for name in ("tova", "h2o"):
            if perplexity[name, budget] >= usual:
                wrong.append(f"{name}: perplexity {perplexity[name, budget]:.3f} at {budget}; random eviction has {usual:.3f}")
    return wrong


def random_eviction(seeds: int, windows: list[list[int]], cases: list[dict]) -> dict:
    """What RANDOM holds. One figure for each seed from 1 on; each prompt is computed once."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "kv_methods"))
    from random_eviction import RandomEviction  # needs numpy

    drawn = RandomEviction(MODEL, 1)

    def by_seed(figure):
        for drawn.seed in range(1, seeds + 1):
            yield figure()

    texts = [(drawn.prefill(w[:CONTEXT]), w[CONTEXT:]) for w in windows]
    asked = [(drawn.prefill(c["prompt_ids"]), len(c["answer_ids"])) for c in cases]

    def perplexity(budget: int) -> float:
        return math.exp(mean(loss for prompt, forced in texts for loss in drawn.losses(prompt, forced, budget)))

    def found(budget: int) -> dict[str, int]:
        return counts(cases, [drawn.greedy(prompt, count, budget) for prompt, count in asked])

    return {
        "what": "random eviction in float64 on recall-9M, a figure for each seed from 1 on, by tokens kept: what TOVA and H2O must beat",
        "command": f"tests/golden/kv_quality.py --random {seeds}",
        "perplexity": {budget: list(by_seed(lambda: perplexity(budget))) for budget in BUDGETS},
        "cases": {budget: list(by_seed(lambda: found(budget))) for budget in BY_SCORES},
    }


def main() -> int:
    missing = [str(path) for path in (MODEL, TEXT, CASES) if not path.exists()]
    if missing:
        print(f"not there: {', '.join(missing)} (set QUIRE_SHARED)")
        return 77
    cases = [case for line in CASES.read_text().splitlines() if 450 <= len((case := json.loads(line))["prompt_ids"]) <= 560]
    text = quire("tokenize", "--model", MODEL, "--input", "-", "--no-special-tokens", "--output", "json", stdin=json.dumps([TEXT.read_text()]))
    ids = json.loads(text)[0]
    step = (len(ids) - WINDOW) // (WINDOWS - 1)
    windows = [ids[i * step : i * step + WINDOW] for i in range(WINDOWS)]
    if sys.argv[1:2] == ["--random"]:
        print(json.dumps(random_eviction(int(sys.argv[2]), windows, cases), indent=1))
        return 0
    found = facts_found(cases)
    wrong = [f"{policy}: {found[policy]['facts']} facts of {len(cases)}; float64 finds {right}" for policy, right in FACTS.items() if found[policy]["facts"] != right]
    values = perplexities(windows)
    wrong += complaints_of_perplexity(values)
    wrong += complaints_beside_random(found, values, json.loads(RANDOM.read_text()))
    print("of", len(cases), found)
    print("perplexity", {f"{name} {budget}": round(value, 3) for (name, budget), value in values.items()})
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
