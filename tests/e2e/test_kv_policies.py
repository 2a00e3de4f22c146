"""KV policies through the real binary, on the demo model: a budget of everything changes nothing; below it, tokens and kept positions are the reference's.

Tokens and kept positions are compared with policy_reference.py, which is float64 and has no cache.
"""

from __future__ import annotations

import functools
import json
import random

import pytest
from conftest import MODEL, generate, quire
from policy_reference import Policy, ReferenceModel

NEUTRAL = ["window:size=4000", "stream:sinks=4,recent=3900", "tova:budget=4000", "h2o:heavy=64,recent=3900"]
# Budgets around the block size of 16, and H2O and streams whose parts end inside a block.
POLICIES = [
    Policy("window", size=1),
    Policy("window", size=15),
    Policy("window", size=33),
    Policy("stream", sinks=4, recent=12),
    Policy("stream", sinks=17, recent=16),
    Policy("stream", sinks=0, recent=20),
    Policy("tova", budget=1),
    Policy("tova", budget=15),
    Policy("tova", budget=32),
    Policy("h2o", heavy=1, recent=1),
    Policy("h2o", heavy=8, recent=7),
    Policy("h2o", heavy=0, recent=16),
    Policy("h2o", heavy=20, recent=13),
]
STORY = "Once upon a time there was a little fox who lived in a deep wood with her mother and two brothers."


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    return ReferenceModel(MODEL)


@functools.cache
def story_ids() -> list[int]:
    done = quire("tokenize", "--model", MODEL, "--input", "-", "--output", "json", stdin=json.dumps([STORY]))
    [ids] = json.loads(done.stdout)
    return ids


def prompt_of(length: int) -> list[int]:
    """English that this model knows, then as much noise as is wanted."""
    noise = random.Random(length)
    return (story_ids() + [noise.randrange(300, 4000) for _ in range(length)])[:length]


def run(lines: list[dict], *arguments: object) -> list[dict]:
    text = "".join(json.dumps({"temperature": 0, "ignore_eos": True, **line}) + "\n" for line in lines)
    return generate("--input", "-", *arguments, stdin=text)


def kept_of(output: dict) -> list[list[list[int]]]:
    return [layer["heads"] for layer in output["kv_dump"]["layers"]]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_tokens_and_kept_positions_are_the_references(model, policy):
    lengths = [1, 15, 17, 70]
    lines = [{"token_ids": prompt_of(n), "max_tokens": 18, "kv_policy": str(policy), "dump_kv": True} for n in lengths]
    answers = run(lines)
    for line, answer in zip(lines, answers, strict=True):
        wanted = model.greedy(line["token_ids"], policy, 18)
        what = f"{policy}, {len(line['token_ids'])} prompt tokens (closest decisions: {wanted.closest_token}, {wanted.closest_victim})"
        [output] = answer["outputs"]
        assert output["token_ids"] == wanted.tokens, what
        assert kept_of(output) == wanted.kept, what


@pytest.mark.parametrize("policy", [Policy(), *POLICIES[1::2]], ids=str)
def test_beams_are_the_references(model, policy):
    lines = [{"token_ids": prompt_of(n), "max_tokens": 14, "beam_width": 3, "n": 3, "kv_policy": str(policy), "dump_kv": True} for n in (1, 17, 40)]
    for line, answer in zip(lines, run(lines, "--check-invariants", "--dtype", "f32"), strict=True):
        wanted = model.beams(line["token_ids"], policy, 3, 14)
        what = f"{policy}, {len(line['token_ids'])} prompt tokens (closest decisions: {wanted.closest_token}, {wanted.closest_share})"
        assert [token for output in answer["outputs"] for token in output["token_ids"]] == wanted.tokens, what
        assert [layer for output in answer["outputs"] for layer in kept_of(output)] == wanted.kept, what


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_one_beam_is_the_greedy_continuation(policy):
    line = {"token_ids": prompt_of(40), "max_tokens": 30, "kv_policy": str(policy)}
    beam, greedy = run([{**line, "beam_width": 1}, line])
    assert beam["outputs"][0]["token_ids"] == greedy["outputs"][0]["token_ids"]


def test_a_budget_that_drops_nothing_changes_nothing():
    prompts = [prompt_of(n) for n in (1, 16, 100, 333)]
    plain = [a["outputs"][0]["token_ids"] for a in run([{"token_ids": p, "max_tokens": 40} for p in prompts])]
    mixed = [{"token_ids": p, "max_tokens": 40, "kv_policy": k, "logprobs": 0} for p in prompts for k in NEUTRAL]
    answers = run(mixed)
    for i, answer in enumerate(answers):
        assert answer["outputs"][0]["token_ids"] == plain[i // len(NEUTRAL)], mixed[i]["kv_policy"]


def settings() -> list[dict]:
    budgets = ["window:size=20", "stream:sinks=4,recent=20", "tova:budget=24", "h2o:heavy=12,recent=12", ""]
    return [{"token_ids": prompt_of(n), "max_tokens": 30, "kv_policy": k, "dump_kv": True} for n in (37, 90) for k in budgets]


@pytest.fixture(scope="module")
def alone() -> list[tuple]:
    return [(a["outputs"][0]["token_ids"], kept_of(a["outputs"][0])) for line in settings() for a in run([line], "--prefix-cache=false")]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--max-prefill-chunk-tokens", 1],
        ["--max-prefill-chunk-tokens", 7],
        ["--max-prefill-chunk-tokens", 64],
        ["--block-tokens", 8],
        ["--block-tokens", 64],
        ["--max-sequences", 3],
        # 34 blocks hold the largest request and little beside it: the rest waits, or gives way and runs again.
        ["--kv-cache-bytes", 34 * 16 * 2 * 6 * 4 * 64 * 4, "--prefix-cache=false"],
    ],
    ids=lambda a: " ".join(map(str, a)) or "one batch",
)
def test_the_batch_the_chunks_and_the_room_change_nothing(alone, arguments):
    answers = run(settings(), "--check-invariants", *arguments)
    for line, answer, wanted in zip(settings(), answers, alone, strict=True):
        [output] = answer["outputs"]
        assert (output["token_ids"], kept_of(output)) == wanted, line["kv_policy"]


def test_samples_of_one_prompt_keep_lists_of_their_own():
    for line, policy in ((line, line["kv_policy"]) for line in settings()[:4]):
        [together] = run([{**line, "n": 4, "temperature": 1, "seed": 5}], "--check-invariants")
        tokens = {tuple(o["token_ids"]) for o in together["outputs"]}
        assert len(tokens) == 4, policy
        # Position-only policies keep the same positions whatever was said; the others' scores follow each sample's own tokens.
        assert len({json.dumps(o["kv_dump"]) for o in together["outputs"]}) == (1 if policy.startswith(("window", "stream")) else 4), policy
        [again] = run([{**line, "n": 4, "temperature": 1, "seed": 5}])
        assert again["outputs"] == together["outputs"], policy
        [greedy] = run([{**line, "n": 4}], "--check-invariants")
        [single] = run([line])
        assert all(o["token_ids"] == single["outputs"][0]["token_ids"] for o in greedy["outputs"]), policy
        assert all(o["kv_dump"] == single["outputs"][0]["kv_dump"] for o in greedy["outputs"]), policy


def test_a_cached_prefix_changes_nothing(alone):
    for line, wanted in list(zip(settings(), alone))[5:]:
        policy = line["kv_policy"]
        twice = run([line, line], "--max-sequences", 1, "--check-invariants")
        for answer in twice:
            assert (answer["outputs"][0]["token_ids"], kept_of(answer["outputs"][0])) == wanted, policy
        hits = twice[1]["usage"]["cached_tokens"]
        if policy.startswith("h2o"):
            assert hits == 0, "H2O needs sums over all rows of the prompt"
        else:
            assert hits >= 80, "the prompt's whole blocks, published before they were let go"


ON_SHIM = ["window:size=20", "stream:sinks=4,recent=20", "stream:sinks=17,recent=16", "tova:budget=1", "tova:budget=20", "h2o:heavy=8,recent=7", "h2o:heavy=12,recent=1"]


@pytest.mark.parametrize("policy", ON_SHIM)
def test_the_cuda_kernels_keep_the_same(policy):
    """On the host shim, where this build has it. Prompts in chunks and a mixed batch, as on a card."""
    lines = [{"token_ids": prompt_of(n), "max_tokens": 10, "dump_kv": True, "kv_policy": k} for n, k in ((50, policy), (30, ""), (9, policy))]
    on_cpu = run(lines, "--max-prefill-chunk-tokens", 16)
    done = quire("generate", "--model", MODEL, "--input", "-", "--output", "json", "--device", "cuda-host", "--dtype", "f32",
                 "--kv-cache-bytes", 1 << 24, "--max-prefill-chunk-tokens", 16,
                 stdin="".join(json.dumps({"temperature": 0, "ignore_eos": True, **line}) + "\n" for line in lines))  # fmt: skip
    if "without the CUDA" in done.stderr or "no CUDA" in done.stderr:
        pytest.skip("this build has no CUDA executor")
    assert done.returncode == 0, done.stderr
    on_shim = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(a["outputs"][0]["token_ids"], kept_of(a["outputs"][0])) for a in on_shim] == [
        (a["outputs"][0]["token_ids"], kept_of(a["outputs"][0])) for a in on_cpu
    ]


def test_a_policys_entries_serve_nobody_else():
    long = prompt_of(90)
    lines = [{"token_ids": long, "max_tokens": 2, "kv_policy": k} for k in ("window:size=64", "", "tova:budget=40", "stream:sinks=4,recent=60")]
    answers = run(lines, "--max-sequences", 1)
    cached = [a["usage"]["cached_tokens"] for a in answers]
    assert cached[1] == 0, "what a window computed is not what full attention would have"
    assert cached[2] >= 80, "but TOVA's prompt is full attention's"
    assert cached[3] == 0


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("tovar:budget=4", "unknown kv_policy 'tovar'; known: none, window, stream, tova, h2o"),
        ("window:budget=4", "has no setting 'budget=4'"),
        ("window:size=0", "size is '0'; it must be a whole number of tokens from 1"),
        ("stream:sinks=4", "needs recent=TOKENS"),
        ("h2o:heavy=4,heavy=5,recent=1", "sets heavy twice"),
        ("window:size=4,", "kv_policy 'window' has an empty setting"),
        ("window:size=4,tova:budget=4", "kv_policy names 'window' and 'tova'; two policies on one list would disagree on what to drop: choose one"),
    ],
)
def test_a_bad_policy_is_refused_by_name(policy, said):
    done = quire("generate", "--model", MODEL, "--prompt", "The", "--kv-policy", policy)
    assert done.returncode != 0
    assert said in done.stderr


def test_what_makes_no_sense_together_says_why():
    done = quire("generate", "--model", MODEL, "--prompt", "The", "--kv-policy", "window:size=4", "--prompt-logprobs", 0, "--output", "json")
    assert done.returncode != 0
    assert "prompt logprobs are those of full attention" in done.stderr


@pytest.mark.parametrize("policy", ["tova:budget=4", "h2o:heavy=2,recent=2"])
@pytest.mark.parametrize("flag", ["--kv-policy", "--default-kv-policy"])
def test_a_list_that_cannot_be_computed_again_is_refused_where_that_is_the_only_way_to_make_room(policy, flag):
    done = quire("generate", "--model", MODEL, "--prompt", "The", flag, policy, "--preemption-mode", "recompute")
    assert done.returncode != 0
    assert f"kv_policy '{policy}' cannot be used here: preemption_mode is 'recompute'" in done.stderr
    [window] = run([{"token_ids": [300], "max_tokens": 1, "kv_policy": "window:size=4"}], "--preemption-mode", "recompute")
    assert len(window["outputs"][0]["token_ids"]) == 1


@pytest.mark.parametrize("policy", ["", "window:size=8", "stream:sinks=2,recent=6", "tova:budget=8", "h2o:heavy=4,recent=4"])
def test_a_dump_says_what_is_visible_after_the_last_step_that_ran(policy):
    """The step that ends the prompt is the same, and so is its cut, whether a token is sampled from it or not."""
    lines = [{"token_ids": prompt_of(40), "max_tokens": n, "dump_kv": True, "kv_policy": policy} for n in (0, 1)]
    none, one = run(lines, "--prefix-cache=false")
    assert kept_of(none["outputs"][0]) == kept_of(one["outputs"][0])
    assert len(kept_of(none["outputs"][0])[0][0]) == (8 if policy else 40)


def test_the_prompt_of_h2o_fills_the_cache_for_others():
    lines = [{"token_ids": prompt_of(90), "max_tokens": 2, "kv_policy": k} for k in ("h2o:heavy=12,recent=12", "", "tova:budget=24", "h2o:heavy=12,recent=12")]
    answers = run(lines, "--max-sequences", 1, "--check-invariants")
    assert [a["usage"]["cached_tokens"] for a in answers] == [0, 80, 89, 0], "whole blocks by H2O, the rest by the request without a policy"


def test_the_answer_and_the_servers_figures_say_what_a_policy_did(client):
    modes = {"none": "full", "window:size=8": "windowed", "stream:sinks=1,recent=8": "windowed", "tova:budget=8": "full_then_cut", "h2o:heavy=4,recent=4": "full_then_cut"}
    answers = run([{"token_ids": prompt_of(40), "max_tokens": 1, "kv_policy": k} for k in modes])
    assert [a["kv"]["prefill_mode"] for a in answers] == list(modes.values())
    before = client.load()
    assert [(p.name, p.sequences, p.slots, p.blocks) for p in before.policies] == [(name, 0, 0, 0) for name in ("none", "window", "stream", "tova", "h2o")]
    done = client.generate(prompt_of(40), max_tokens=3, temperature=0, ignore_eos=True, kv_policy="tova:budget=8").result()
    assert done.kv.prefill_mode == "full_then_cut"
    after = client.load()
    assert after.totals["policy_dropped_tokens_total"] - before.totals["policy_dropped_tokens_total"] == 32 + 1
    read = after.totals["attention_read_bytes_total"] - before.totals["attention_read_bytes_total"]
    assert read == 2 * 9 * client.model().kv_bytes_per_token, "two decodes over the 8 that are kept and the new one"


def test_an_operator_chooses_policies():
    [by_default] = run([{"token_ids": prompt_of(40), "max_tokens": 2, "dump_kv": True}], "--default-kv-policy", "window:size=5")
    assert kept_of(by_default["outputs"][0]) == [[[36, 37, 38, 39, 40]]] * 6
    [off] = run([{"token_ids": prompt_of(40), "max_tokens": 2, "dump_kv": True, "kv_policy": "none"}], "--default-kv-policy", "window:size=5")
    assert len(kept_of(off["outputs"][0])[0][0]) == 41
    done = quire("generate", "--model", MODEL, "--prompt", "The", "--kv-policy", "window:size=4", "--kv-policies-allowed", "stream", "--kv-policies-allowed", "tova")
    assert done.returncode != 0
    assert "'window' is not allowed by this server" in done.stderr
