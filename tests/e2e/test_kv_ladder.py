"""The acceptance ladder of the KV policies through the real binary: what drops nothing is full attention bit for bit, decisions and numbers
are a float64 program's over a thousand random cases of each policy, and the batch, its chunks and its blocks change no bit.

The random cases run on a tiny model with grouped queries whose W_Q is sharpened (random_model.py); the reference is policy_reference.py.
Quality on a trained model: tests/golden/kv_quality.py. Swaps at every step: tests/golden/policy_swap_test.cc.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import MODEL, quire
from policy_reference import Policy, ReferenceModel, Run
from random_model import VOCABULARY, write_model

# Keeping everything these models' contexts hold.
NEUTRAL = ["window:size=4000", "stream:sinks=4,recent=3900", "tova:budget=4000", "h2o:heavy=64,recent=3900"]
BLOCK = 16
CASES = 1000  # of each policy
NEW_TOKENS = 6
# Largest difference of any log probability from float64. float32 rounds each of some ten sums on the way; seen: 2e-6 at most.
TOLERANCE = 1e-5
# A decision by less than this, in logits or as a share of the score, may go either way in float32: such a case is a tie and left out.
TIE = 1e-4


def run(model: Path, lines: list[dict], *arguments: object) -> list[dict]:
    text = "".join(json.dumps({"temperature": 0, "ignore_eos": True, **line}) + "\n" for line in lines)
    done = quire("generate", "--model", model, "--input", "-", "--output", "json", *arguments, stdin=text)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["outputs"][0] for line in done.stdout.splitlines()]


def bits(output: dict) -> list[tuple]:
    """Tokens and every log probability; json prints the shortest digits that name one float, so equal text is equal bits."""
    return [(e["token_id"], e["logprob"], *((t["token_id"], t["logprob"]) for t in e["top"])) for e in output["logprobs"]]


def kept_of(output: dict) -> list[list[list[int]]]:
    return [layer["heads"] for layer in output["kv_dump"]["layers"]]


def tokens_of(length: int, seed: int, vocabulary: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(2, vocabulary) for _ in range(length)]


# ---- rung 1: the neutral setting is full attention


@pytest.mark.parametrize("arguments", [(), ("--max-prefill-chunk-tokens", 7), ("--threads", 1)], ids=lambda a: " ".join(map(str, a)) or "default")
def test_a_budget_that_drops_nothing_is_full_attention_bit_for_bit(arguments):
    lengths = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 100, 333]
    lines = [{"token_ids": tokens_of(n, n, 4000), "max_tokens": 24, "logprobs": 5, "kv_policy": k} for n in lengths for k in ("none", *NEUTRAL)]
    answers = run(MODEL, lines, "--prefix-cache=false", *arguments)
    for i, answer in enumerate(answers):
        plain = answers[i - i % (1 + len(NEUTRAL))]
        assert bits(answer) == bits(plain), (lines[i]["kv_policy"], len(lines[i]["token_ids"]))


# ---- rungs 2 and 3: decisions, and the numbers behind them


@dataclass
class Case:
    prompt: list[int]
    policy: Policy

    def line(self, **more) -> dict:
        return {"token_ids": self.prompt, "max_tokens": NEW_TOKENS, "kv_policy": str(self.policy), "dump_kv": True, "logprobs": 5, **more}


def draw_policy(kind: str, draw: random.Random) -> Policy:
    def size(least: int, most: int) -> int:
        """One below, at and above a block's end as often as all else."""
        edges = [n for n in (BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1) if least <= n <= most]
        return draw.choice(edges) if draw.random() < 0.5 else draw.randint(least, most)

    if kind == "window":
        return Policy(kind, size=size(1, 40))
    if kind == "stream":
        return Policy(kind, sinks=size(0, 18), recent=size(1, 24))
    return Policy(kind, budget=size(1, 40)) if kind == "tova" else Policy(kind, heavy=size(0, 20), recent=size(1, 20))


def draw_cases(kind: str, count: int) -> list[Case]:
    draw, cases = random.Random(kind), []
    for i in range(count):
        edge = draw.choice([1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1])
        length = edge if i % 2 else draw.randint(1, 44)
        cases.append(Case([draw.randrange(2, VOCABULARY) for _ in range(length)], draw_policy(kind, draw)))
    return cases


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Path:
    """4 query heads over 2 KV heads."""
    return write_model(tmp_path_factory.mktemp("random_model"))


def is_tie(wanted: Run) -> bool:
    return wanted.closest_token < TIE or wanted.closest_share < TIE


@pytest.mark.parametrize("kind", ["window", "stream", "tova", "h2o"])
def test_a_thousand_random_cases_decide_and_compute_as_float64_does(grouped, kind):
    reference, cases = ReferenceModel(grouped), draw_cases(kind, CASES)
    ties, widest = 0, 0.0
    for part, chunk in enumerate((1, 7, BLOCK, 64)):
        some = cases[part::4]
        outputs = run(grouped, [case.line() for case in some], "--max-prefill-chunk-tokens", chunk, "--check-invariants")
        for case, output in zip(some, outputs, strict=True):
            wanted = reference.greedy(case.prompt, case.policy, NEW_TOKENS)
            if is_tie(wanted):
                ties += 1
                continue
            what = f"{case.policy}, {len(case.prompt)} prompt tokens, chunks of {chunk}"
            assert output["token_ids"] == wanted.tokens, what
            assert kept_of(output) == wanted.kept, what
            for entry, row in zip(output["logprobs"], wanted.logprobs, strict=True):
                widest = max([widest, *(abs(t["logprob"] - row[t["token_id"]]) for t in (entry, *entry["top"]))])
    print(f"{kind}: {CASES - ties} cases, {ties} ties left out; log probabilities within {widest:.2g}")
    assert widest <= TOLERANCE
    assert ties <= CASES // 20


# ---- rung 4: the system around it


@pytest.mark.parametrize("block", [8, 16])
def test_one_at_a_time_or_64_together_give_the_same_bits(grouped, block):
    kinds = ["window", "stream", "tova", "h2o"]
    cases = [case for group in zip(*(draw_cases(kind, 13) for kind in kinds)) for case in group]
    lines = [case.line(max_tokens=20) for case in cases] + [{**cases[i].line(max_tokens=20), "kv_policy": "none"} for i in range(12)]
    assert len(lines) == 64
    # Which blocks a window has let go of by a row decides the order of that row's sums: bits are compared within one chunking.
    settings = ("--block-tokens", block, "--prefix-cache=false")
    together = run(grouped, lines, *settings, "--max-sequences", 64, "--check-invariants")
    alone = run(grouped, lines, *settings, "--max-sequences", 1)
    for line, one, many in zip(lines, alone, together, strict=True):
        assert bits(many) == bits(one), line["kv_policy"]
        assert kept_of(many) == kept_of(one), line["kv_policy"]
