#!/usr/bin/env python3
"""Engines of this machine's Python on the suite's workloads, random weights, greedy, no stops: vLLM where it can be imported (the
peer that counts), and transformers' generate (a weak one). Lines are named as rows of the suite's table."""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Row of the table: directory of the model's config.json, batch, prompt tokens, new tokens.
STEPS = {
    "8B batch 1, step": ("benchmarks/shapes/llama-3.1-8b", 1, 128, 64),
    "8B 64 at 1k, step": ("benchmarks/shapes/llama-3.1-8b", 64, 1024, 64),
    "0.6B batch 1, step": ("benchmarks/shapes/qwen3-0.6b", 1, 128, 64),
    "0.6B 64 at 1k, step": ("benchmarks/shapes/qwen3-0.6b", 64, 1024, 64),
}
TINY_STEPS = {"0.6B batch 1, step": ("tests/golden/families/qwen3", 1, 8, 6)}


def prompts(batch: int, length: int) -> list[list[int]]:
    return [[(7 * i + 13 * j) % 100 + 3 for j in range(length)] for i in range(batch)]


def step_ms(generate, new_tokens: int) -> float:
    """What one more token costs: the time of all new tokens less that of two, over their difference; the median of five."""
    generate(new_tokens)
    found = []
    for _ in range(5):
        times = []
        for tokens in (2, new_tokens):
            begin = time.perf_counter()
            generate(tokens)
            times.append(time.perf_counter() - begin)
        found.append((times[1] - times[0]) / (new_tokens - 2) * 1e3)
    return statistics.median(found)


def run_vllm(lines: list[dict], steps: dict) -> None:
    from vllm import LLM, SamplingParams

    for shape in dict.fromkeys(s[0] for s in steps.values()):
        engine = LLM(model=str(ROOT / shape), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=2048,
                     gpu_memory_utilization=0.85, enable_prefix_caching=False)
        for row, (own, batch, length, new_tokens) in steps.items():
            if own != shape:
                continue
            requests = [{"prompt_token_ids": ids} for ids in prompts(batch, length)]

            def generate(tokens):
                engine.generate(requests, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False), use_tqdm=False)

            lines.append({"what": row, "peer": "vLLM", "value": step_ms(generate, new_tokens)})
        del engine
        gc.collect()


def run_transformers(lines: list[dict], steps: dict) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"

    for shape in dict.fromkeys(s[0] for s in steps.values()):
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / shape), dtype=torch.bfloat16).eval()
        for row, (own, batch, length, new_tokens) in steps.items():
            if own != shape or batch > 1:
                continue
            ids = torch.tensor(prompts(batch, length), device=device)

            def generate(tokens):
                with torch.inference_mode():
                    model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
                if device == "cuda":
                    torch.cuda.synchronize()

            lines.append({"what": row, "peer": "transformers", "value": step_ms(generate, min(new_tokens, 16))})
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="a dry run: a model of three small layers, wherever torch runs")
    args = parser.parse_args()
    lines, absent = [], {}
    for name, run in (("vLLM", run_vllm), ("transformers", run_transformers)):
        try:
            run(lines, TINY_STEPS if args.tiny else STEPS)
        except Exception as fault:  # missing, too new, too old, out of memory: the reason is the result
            absent[name] = f"{type(fault).__name__}: {str(fault)[:200]}"
            print(f"absent: {name}: {absent[name]}", flush=True)
        args.json.write_text(json.dumps({"lines": lines, "peers_absent": absent}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
