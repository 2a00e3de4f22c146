#!/usr/bin/env python3
"""What KV policies cost in quality, and what they save: perplexity of a text and facts found, against the budget, through `quire generate`.

  benchmarks/kv_methods/quality.py --model models/demo --text FILE.txt --passkeys FILE.jsonl --output quality.json

Perplexity: each window of the text is one request; its first --context tokens are the prompt, the rest are forced one at a time, so every
policy drops tokens as it would while serving. Passkeys: lines {"prompt_ids": [..], "answer_ids": [..], "kind": ..}; a case is right when
the greedy output begins with the answer. Beside the engine's methods stands random eviction at the same budgets (random_eviction.py, float64),
and the same code at a budget that drops nothing, which must agree with the engine's full attention. Prints a table; the JSON holds every figure and the command.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from random_eviction import RandomEviction

ROOT = Path(__file__).resolve().parents[2]
FRACTIONS = (1.0, 0.5, 0.25, 0.125)


def policies_of(tokens: int) -> list[tuple[str, float, str]]:
    """(method, share of the full cache, kv_policy) at budgets that are equal across methods."""
    rows = [("full", 1.0, "none")]
    for fraction in FRACTIONS:
        budget = int(tokens * fraction)
        rows += [
            ("window", fraction, f"window:size={budget}"),
            ("stream", fraction, f"stream:sinks=4,recent={budget - 4}"),
            ("tova", fraction, f"tova:budget={budget}"),
            ("h2o", fraction, f"h2o:heavy={budget // 2},recent={budget - budget // 2}"),
        ]
    return rows


class Quire:
    def __init__(self, binary: Path, model: Path, arguments: list[str]):
        self.base, self.model, self.arguments = [str(binary)], model, arguments

    def run(self, command: list[str], text: str) -> str:
        done = subprocess.run([*self.base, *command], input=text, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1] if done.stderr else 'failed'}")
        return done.stdout

    def tokenize(self, text: str) -> list[int]:
        out = self.run(["tokenize", "--model", str(self.model), "--input", "-", "--no-special-tokens", "--output", "json"], json.dumps([text]))
        return json.loads(out)[0]

    def generate(self, lines: list[dict]) -> list[dict]:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        out = self.run(["generate", "--model", str(self.model), "--input", "-", "--output", "jsonl", *self.arguments], text)
        return [json.loads(line) for line in out.splitlines()]


def perplexity(quire: Quire, windows: list[list[int]], context: int, policy: str) -> dict:
    lines = [
        {
            "token_ids": w[:context],
            "forced_token_ids": w[context:],
            "max_tokens": len(w) - context,
            "logprobs": 0,
            "ignore_eos": True,
            "kv_policy": policy,
        }
        for w in windows
    ]
    answers = quire.generate(lines)
    losses = [-entry["logprob"] for a in answers for entry in a["outputs"][0]["logprobs"]]
    return {
        "perplexity": math.exp(sum(losses) / len(losses)),
        "tokens": len(losses),
        "blocks_peak": max(a["kv"]["blocks_peak"] for a in answers),
    }


def passkeys(quire: Quire, cases: list[dict], policy_for) -> dict:
    lines = [
        {"token_ids": c["prompt_ids"], "max_tokens": len(c["answer_ids"]), "temperature": 0, "ignore_eos": True, "kv_policy": policy_for(len(c["prompt_ids"]))}
        for c in cases
    ]
    right: dict[str, list[int]] = {}
    for case, answer in zip(cases, quire.generate(lines), strict=True):
        right.setdefault(case.get("kind", "all"), []).append(answer["outputs"][0]["token_ids"] == case["answer_ids"])
    return {"right": sum(map(sum, right.values())), "cases": len(cases), "by_kind": {k: [sum(v), len(v)] for k, v in sorted(right.items())}}


def random_rows(model: Path, windows: list[list[int]], context: int, cases: list[dict], seed: int) -> list[dict]:
    """Random eviction at every budget; each prompt is computed once. blocks_peak is the engine's figure and is not here."""
    baseline = RandomEviction(model, seed)
    losses: dict[float, list[float]] = {fraction: [] for fraction in FRACTIONS}
    right: dict[float, dict[str, list[bool]]] = {fraction: {} for fraction in FRACTIONS}
    for window in windows:
        prompt = baseline.prefill(window[:context])
        for fraction in FRACTIONS:
            losses[fraction] += baseline.losses(prompt, window[context:], int(len(window) * fraction))
    for case in cases:
        prompt, answer = baseline.prefill(case["prompt_ids"]), case["answer_ids"]
        for fraction in FRACTIONS:
            # At the full budget nothing is dropped: the answer's own tokens need no room, as the engine's full attention has none to keep.
            budget = int(prompt.tokens * fraction) if fraction < 1 else prompt.tokens + len(answer)
            right[fraction].setdefault(case.get("kind", "all"), []).append(baseline.greedy(prompt, len(answer), budget) == answer)
    rows = []
    for fraction in FRACTIONS:
        row: dict = {"method": "random" if fraction < 1 else "float64", "fraction": fraction, "seed": seed}
        if windows:
            row["perplexity"] = {"perplexity": math.exp(sum(losses[fraction]) / len(losses[fraction])), "tokens": len(losses[fraction])}
        if cases:
            by_kind = {k: [sum(v), len(v)] for k, v in sorted(right[fraction].items())}
            row["passkeys"] = {"right": sum(v[0] for v in by_kind.values()), "cases": len(cases), "by_kind": by_kind}
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    kinds = sorted({k for r in rows for k in r.get("passkeys", {}).get("by_kind", {})})
    lines = [f"{'method':8} {'budget':>7} {'perplexity':>11} {'blocks':>7} {'facts':>9}" + "".join(f" {k:>8}" for k in kinds)]
    for r in rows:
        p, f = r.get("perplexity"), r.get("passkeys")
        cells = [f"{r['method']:8}", f"{r['fraction']:7.3f}"]
        cells += [f"{p['perplexity']:11.3f}", f"{p.get('blocks_peak', '-'):>7}"] if p else [f"{'':11}", f"{'':7}"]
        cells += [f"{f['right']:5d}/{f['cases']:<3d}", *(f"{f['by_kind'][k][0]:5d}/{f['by_kind'][k][1]:<2d}" for k in kinds)] if f else []
        lines.append(" ".join(cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "release" / "quire")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--text", type=Path, help="UTF-8 text for perplexity")
    parser.add_argument("--passkeys", type=Path, help="jsonl cases")
    parser.add_argument("--window", type=int, default=1024, help="tokens of one window of text")
    parser.add_argument("--context", type=int, default=256, help="of them, tokens of its prompt")
    parser.add_argument("--windows", type=int, default=8, help="windows measured, spread evenly over the text")
    parser.add_argument("--seed", type=int, default=1, help="of random eviction")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("arguments", nargs="*", help="more flags of quire generate, after --")
    args = parser.parse_args()
    if args.text is None and args.passkeys is None:
        parser.error("nothing to measure: give --text, --passkeys or both")
    quire = Quire(args.binary, args.model, args.arguments)
    windows, cases = [], []
    if args.text:
        ids = quire.tokenize(args.text.read_text())
        step = (len(ids) - args.window) // max(1, args.windows - 1)
        windows = [ids[i * step : i * step + args.window] for i in range(args.windows)]
    if args.passkeys:
        cases = [json.loads(line) for line in args.passkeys.read_text().splitlines()]
    rows = []
    for method, fraction, policy in policies_of(args.window):
        row: dict = {"method": method, "fraction": fraction, "kv_policy": policy}
        if windows:
            row["perplexity"] = perplexity(quire, windows, args.context, policy)
        if cases:  # budgets follow the case's own prompt
            row["passkeys"] = passkeys(quire, cases, lambda n: next(p for m, f, p in policies_of(n) if (m, f) == (method, fraction)))
        rows.append(row)
        print(table(rows).splitlines()[-1] if len(rows) > 1 else table(rows), flush=True)
    for row in random_rows(args.model, windows, args.context, cases, args.seed):
        rows.append(row)
        print(table(rows).splitlines()[-1], flush=True)
    if args.output:
        args.output.write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
