"""Stands in for transformers (see torch/)."""

import pathlib


class AutoConfig:
    @staticmethod
    def from_pretrained(path):
        assert (pathlib.Path(path) / "config.json").is_file(), path
        return path


class Model:
    def eval(self):
        return self

    def generate(self, ids, attention_mask, do_sample, min_new_tokens, max_new_tokens, pad_token_id):
        assert ids.shape == attention_mask.shape and not do_sample and min_new_tokens == max_new_tokens


class AutoModelForCausalLM:
    @staticmethod
    def from_config(config, dtype):
        return Model()
