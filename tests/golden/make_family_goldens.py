#!/usr/bin/env python3
"""Makes tests/golden/families: one tiny random model per family and rotary kind, with what transformers computes for it.

Run by hand, rarely (torch and transformers are a large install): python3 tests/golden/make_family_goldens.py
Each folder holds config.json, generation_config.json, model.safetensors (float32) and golden.json:
  prompt_ids   40 random ids
  logits       [40][vocab], of every prompt position, in float64 from the float32 weights
  greedy_ids   64 ids, one step at a time with transformers' own cache
  min_margin   the smallest difference between the two likeliest logits over the greedy steps
rope-dynamic's has two more fields, which add_dynamic_logits.py makes after this script.
A seed whose smallest margin is under 5e-3 is passed over: float32 must be able to tell the two apart.
"""

import argparse
import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file

PROMPT_TOKENS, GREEDY_TOKENS, LEAST_MARGIN = 40, 64, 5e-3

BASE = dict(vocab_size=128, hidden_size=64, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)


def rope(kind, **fields):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **fields))


# name -> (architecture, fields over BASE)
MODELS = {
    "llama-mha-untied": ("Llama", dict(num_key_value_heads=4, tie_word_embeddings=False, intermediate_size=32, rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    "llama-mqa-bias": ("Llama", dict(num_key_value_heads=1, head_dim=24, attention_bias=True, mlp_bias=True, num_hidden_layers=3, intermediate_size=24)),
    "mistral-window": ("Mistral", dict(sliding_window=8)),
    "mistral-headdim": ("Mistral", dict(sliding_window=None, head_dim=32, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=False, vocab_size=160, intermediate_size=40)),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=9, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=3, intermediate_size=32)),
    "rope-linear": ("Llama", rope("linear", factor=4.0)),
    "rope-dynamic": ("Llama", dict(max_position_embeddings=56, **rope("dynamic", factor=2.0))),
    "rope-yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "rope-yarn-mscale": ("Qwen2", rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.8, mscale_all_dim=0.5,
                                       beta_fast=16, beta_slow=2, truncate=False)),
    "rope-llama3": ("Llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
}


# Written as transformers 4 wrote it: rope_theta and rope_scaling beside one another, torch_dtype.
OLD_FORM = {"rope-linear", "rope-llama3", "llama-mha-untied"}


def to_old_form(config):
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["torch_dtype"] = config.pop("dtype")
    if scaling["rope_type"] == "linear":  # older still
        scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling


def make_model(name, seed):
    family, fields = MODELS[name]
    config = getattr(transformers, family + "Config")(**{**BASE, **fields})
    config._attn_implementation = "eager"
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    # Larger than transformers' own initialisation: attention must be far from uniform and logits far from flat, or a wrong
    # rotation would pass.
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if key.endswith("norm.weight"):
                p.copy_(1 + 0.2 * noise)
            elif key.endswith("bias"):
                p.copy_(0.3 * noise)
            elif "embed" in key:
                p.copy_(0.4 * noise)
            else:
                p.copy_(noise * (2.0 if "_proj" in key and ("q_" in key or "k_" in key) else 1.2) / p.shape[1] ** 0.5)
    return model


@torch.no_grad()
def compute(model, seed):
    exact = model.double()
    vocab = model.config.vocab_size
    prompt = torch.randint(0, vocab, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    out = exact(torch.tensor([prompt]), use_cache=True)
    logits, cache, row = out.logits[0], out.past_key_values, out.logits[0, -1]
    greedy, margin = [], float("inf")
    for _ in range(GREEDY_TOKENS):
        top = torch.topk(row, 2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        greedy.append(int(top.indices[0]))
        out = exact(torch.tensor([[greedy[-1]]]), past_key_values=cache, use_cache=True)
        cache, row = out.past_key_values, out.logits[0, -1]
    return dict(prompt_ids=prompt, greedy_ids=greedy, min_margin=round(margin, 6),
                logits=[[round(float(x), 5) for x in position] for position in logits])


def write(name, folder):
    for seed in range(100, 200):
        model = make_model(name, seed)
        weights = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight" or not model.config.tie_word_embeddings}
        golden = compute(model, seed)
        if golden["min_margin"] >= LEAST_MARGIN and len(set(golden["greedy_ids"])) >= 16:
            break
    else:
        raise SystemExit(f"{name}: no seed with margins of {LEAST_MARGIN}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = model.config.to_dict()
    config.update(architectures=[type(model).__name__], dtype="float32")
    for key in ("_name_or_path", "_attn_implementation_autoset"):
        config.pop(key, None)
    if name in OLD_FORM:
        to_old_form(config)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(dict(bos_token_id=1, eos_token_id=2)) + "\n")
    save_file(weights, str(folder / "model.safetensors"), metadata=dict(format="pt"))
    assert all(torch.equal(weights[k], v) for k, v in load_file(str(folder / "model.safetensors")).items())
    golden = dict(made_with=f"transformers {transformers.__version__}, float64", seed=seed, **golden)
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, smallest margin {golden['min_margin']}, {size / 1024:.0f} KiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "families")
    parser.add_argument("names", nargs="*", help="models to make (default: all): " + ", ".join(MODELS))
    args = parser.parse_args()
    for name in args.names or MODELS:
        write(name, args.out / name)


if __name__ == "__main__":
    main()
