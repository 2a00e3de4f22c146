"""Stands in for vLLM (see torch/)."""

import pathlib


class SamplingParams:
    def __init__(self, temperature, max_tokens, ignore_eos, detokenize):
        assert temperature == 0 and max_tokens > 0 and ignore_eos and not detokenize


class LLM:
    def __init__(self, model, load_format, skip_tokenizer_init, dtype, max_model_len, gpu_memory_utilization, enable_prefix_caching):
        assert (pathlib.Path(model) / "config.json").is_file(), model
        assert load_format == "dummy" and not enable_prefix_caching
        self.most = max_model_len

    def generate(self, requests, sampling, use_tqdm):
        assert all(0 < len(r["prompt_token_ids"]) < self.most for r in requests)
