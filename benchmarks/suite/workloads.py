"""The engine's workloads on a card, as quire-offline reads them; and small ones for a dry run."""

import random

SHAPES = {"engine-8b": "llama-3.1-8b", "engine-0.6b": "qwen3-0.6b", "engine-13b": "llama-2-13b"}
DTYPES = {"llama-2-13b": "f16"}  # the checkpoints' own; bf16 for those not named


def work(name, batch=1, prompt=512, new=64, rounds=5, n=1, shared=0):
    return {
        "name": name,
        "batch": batch,
        "n": n,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "shared_prefix_tokens": shared,
        "rounds": rounds,
    }


# Lengths and rounds so that a list takes under two minutes on an H100. A step is timed while all sequences decode, so a batch's first
# request must outlast the prefill of its last: 128 steps of 2048 tokens for 256 at 1k.
WORKLOADS = {
    "engine-8b": [
        work("batch 1", prompt=128, new=128),
        work("prefill of 512", prompt=512, new=2, rounds=9),
        work("prefill of 8192", prompt=8192, new=2),
        work("n = 4 on 2048", prompt=2048, new=128, n=4),
        work("64 on a prefix of 4096", batch=64, prompt=64, new=64, shared=4096),
        work("64 at 1k", batch=64, prompt=1024, new=96),
        work("256 at 1k", batch=256, prompt=1024, new=176, rounds=3),
    ],
    "engine-0.6b": [
        work("batch 1", prompt=128, new=256),
        work("64 at 1k", batch=64, prompt=1024, new=128),
        work("256 at 1k", batch=256, prompt=1024, new=176, rounds=3),
    ],
    "engine-13b": [work("batch 1", prompt=128, new=96), work("16 at 1k", batch=16, prompt=1024, new=64)],
}


# Between whose steps the card's idle time is taken.
IDLE = [work("batch 1", prompt=128, new=256, rounds=1), work("256 at 1k", batch=256, prompt=1024, new=176, rounds=1)]


def offline_list(count: int = 256) -> list[tuple[int, int]]:
    """Prompt and output tokens of the requests that nano-vllm's bench.py (GeeeekExplorer/nano-vllm, MIT) draws: seed 0, prompts of
    100 to 1024 ids and then 100 to 1024 new tokens each. 142,827 and 133,966 tokens for 256 requests."""
    draw = random.Random(0)
    prompts = [len([draw.randint(0, 10000) for _ in range(draw.randint(100, 1024))]) for _ in range(256)]
    outputs = [draw.randint(100, 1024) for _ in range(256)]
    return list(zip(prompts, outputs))[:count]


def write_offline_list(path, scale: int = 1, count: int = 256) -> None:
    rows = [f"{-(-p // scale)},{-(-o // scale)}" for p, o in offline_list(count)]
    path.write_text("prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")


def shrunk(workloads: list[dict]) -> list[dict]:
    """The same list for the host shim: a few tokens, two sequences, one round."""
    small = []
    for w in workloads:
        tokens = {"prompt_tokens": min(w["prompt_tokens"], 7), "new_tokens": min(w["new_tokens"], 24)}
        small.append({**w, **tokens, "batch": min(w["batch"], 2), "n": min(w["n"], 2), "rounds": 1,
                      "shared_prefix_tokens": min(w["shared_prefix_tokens"], 20)})
    return small
