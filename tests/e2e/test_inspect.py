"""inspect: what a cache would take, and what was understood of a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import MODEL, ROOT, quire


def test_inspect_kv_knows_llama_2_13b(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for dtype in ((), ("--dtype", "bf16")):
        done = quire("inspect", "kv", "--config", tmp_path / "config.json", "--tokens", "10000,100000", *dtype, "--output", "json")
        report = json.loads(done.stdout)
        assert report["bytes_per_token"] == 819_200
        assert [c["bytes"] for c in report["contexts"]] == [c["held_bytes"] for c in report["contexts"]] == [8_192_000_000, 81_920_000_000]
        assert report["groups"] == [{"kind": "full_attention", "window_tokens": 0, "layers": 40, "bytes_per_token": 819_200}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON at byte 2"),
        ("[]", "a JSON object is wanted"),
        ('{"architectures": ["T5Model"]}', ""),
        pytest.param(json.dumps({**json.loads((MODEL / "config.json").read_text()), "rope_scaling": {"rope_type": "none of these"}}), "rope_scaling: ", id="rope"),
    ],
)
def test_inspect_kv_names_the_file_that_it_was_given(tmp_path, text, complaint):
    file = tmp_path / "c.json"
    file.write_text(text)
    done = quire("inspect", "kv", "--config", file)
    assert done.returncode == 1 and done.stderr.startswith(f"quire: {file}: {complaint}"), done.stderr


def test_inspect_kv_tells_what_windows_reach_and_what_quire_holds(tmp_path):
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": 4096, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = ("inspect", "kv", "--config", tmp_path / "config.json", "--tokens", "1000,100000")
    report = json.loads(quire(*asked, "--output", "json").stdout)
    assert report["bytes_per_token"] == 131_072
    assert [c["bytes"] for c in report["contexts"]] == [131_072_000, 131_072 * 4096]
    assert [c["held_bytes"] for c in report["contexts"]] == [131_072_000, 131_072 * 100_000]
    inside, beyond = quire(*asked).stdout.splitlines()[-2:]
    assert inside.endswith("1000 tokens: 131072000 bytes (0.13 GB)")
    assert beyond.endswith("100000 tokens: 536870912 bytes (0.54 GB) in reach of the windows; quire holds 13107200000 bytes (13.11 GB)")


def test_inspect_kv_tells_what_the_engine_holds():
    """Of a tiny model whose every layer has a window of 8, and at last with a policy of that window: the same tokens, in less."""
    model, prompt, block_tokens = ROOT / "tests/golden/families/mistral-window", 40, 8
    report = json.loads(quire("inspect", "kv", "--config", model / "config.json", "--tokens", prompt + 64, "--output", "json").stdout)
    ids = ",".join(str(3 + i) for i in range(prompt))
    run = ("generate", "--model", model, "--prompt-ids", ids, "--max-tokens", 64, "--ignore-eos", "--block-tokens", block_tokens)
    flags = ("--temperature", 0, "--dtype", "f32", "--max-prefill-chunk-tokens", 8, "--output", "json")
    whole, window = (json.loads(quire(*run, *flags, *policy).stdout) for policy in ((), ("--kv-policy", "window:size=8")))
    peak_bytes = [answer["kv"]["blocks_peak"] * block_tokens * report["bytes_per_token"] for answer in (whole, window)]
    assert peak_bytes[0] == report["contexts"][0]["held_bytes"] > peak_bytes[1] >= report["contexts"][0]["bytes"]
    assert whole["outputs"][0]["token_ids"] == window["outputs"][0]["token_ids"]


def test_inspect_model_tells_shape_and_weights():
    report = json.loads(quire("inspect", "model", MODEL, "--output", "json").stdout)
    assert report["layers"] == 6
    assert report["kv_bytes_per_token"] == {"cuda": {"dtype": "bf16", "bytes": 6144}, "cpu": {"dtype": "f32", "bytes": 12288}}
    assert report["weights"]["bytes"] == 2 * report["parameters"]
    assert report["tokenizer"] == {"tokens": 4096, "ids_without_a_token": 0} and report["chat_template"] is False


@pytest.mark.parametrize("written", ["1e-05", "1e-06", "9.999999e-07", "0.0009765625", "3.3e-7"])
def test_inspect_model_shows_numbers_as_the_config_has_them(tmp_path, written):
    config = json.loads((MODEL / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config).replace(json.dumps(config["rms_norm_eps"]), written))
    done = quire("inspect", "model", tmp_path, "--weights", "random", "--output", "json")
    assert json.loads(done.stdout)["norm_eps"] == float(written)
    assert f'"norm_eps":{float(written)!r},' in done.stdout


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("tokenizer_of_another_vocabulary", "its highest token id is"),
        ("truncated_tokenizer", "tokenizer.json: "),
        ("no_weights", "model.safetensors"),
        ("broken_chat_template", "chat_template"),
    ],
)
def test_inspect_model_refuses_what_the_server_refuses(tmp_path, fault, complaint):
    for file in MODEL.iterdir():
        if file.is_file() and not (fault == "no_weights" and "safetensors" in file.name):
            shutil.copy(file, tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    if fault == "tokenizer_of_another_vocabulary":
        known = json.loads(tokenizer.read_text())
        known["added_tokens"].append({**known["added_tokens"][0], "id": 5000, "content": "<|beyond|>"})
        tokenizer.write_text(json.dumps(known))
    elif fault == "truncated_tokenizer":
        tokenizer.write_bytes(tokenizer.read_bytes()[:1000])
    elif fault == "broken_chat_template":
        (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}")
    inspected, served = quire("inspect", "model", tmp_path), quire("serve", "--model", tmp_path, "--port", 0)
    assert inspected.returncode == 1 == served.returncode
    assert complaint in inspected.stderr and inspected.stderr.splitlines()[-1] == served.stderr.splitlines()[-1]


def test_inspect_model_of_a_configuration_alone(tmp_path):
    shutil.copy(MODEL / "config.json", tmp_path)
    report = json.loads(quire("inspect", "model", tmp_path, "--weights", "random", "--output", "json").stdout)
    assert report["weights"] is None and report["tokenizer"] is None and report["layers"] == 6


def rewritten_header(source: Path, target: Path, change) -> None:
    """A copy of a safetensors file whose header went through `change`."""
    data = source.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("fault", ["missing", "shape", "dtype"])
def test_inspect_model_checks_the_tensors_as_the_loader_does(tmp_path, fault):
    for file in MODEL.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (tmp_path / file.name).symlink_to(file)
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    name = min(n for n in index["weight_map"] if n.endswith("q_proj.weight"))
    shard = MODEL / index["weight_map"][name]

    def change(header: dict) -> None:
        if fault == "shape":
            header[name]["shape"] = [*header[name]["shape"], 1]
        elif fault == "dtype":
            header[name]["dtype"] = "I16"
        else:
            header["model.layers.0.self_attn.other.weight"] = header.pop(name)

    (tmp_path / shard.name).unlink()
    rewritten_header(shard, tmp_path / shard.name, change)
    if fault == "missing":
        (tmp_path / "model.safetensors.index.json").unlink()
        index["weight_map"]["model.layers.0.self_attn.other.weight"] = index["weight_map"].pop(name)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    done = quire("inspect", "model", tmp_path, "--output", "json")
    loaded = quire("generate", "--model", tmp_path, "--prompt", "a", "--max-tokens", 1)
    assert done.returncode == 1 and f"tensor `{name}`" in done.stderr
    assert done.stderr.splitlines()[-1] == loaded.stderr.splitlines()[-1]
