"""The command line as scripts use it: the forms of docs/commands.md, on the demo model, and what bad input gets."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BINARY, MODEL, ROOT, generate, model_with_nan_weights, quire


def test_generate_prints_the_documented_object():
    [answer] = generate("--prompt", "Once upon a time", "--max-tokens", 8, "--temperature", 0, "--logprobs", 2)
    assert list(answer)[:4] == ["prompt_token_ids", "outputs", "usage", "kv"]
    [output] = answer["outputs"]
    assert output["index"] == 0 and output["finish_reason"] == "length" and output["text"]
    assert len(output["token_ids"]) == 8 == len(output["logprobs"]) == answer["usage"]["completion_tokens"]
    for token_id, entry in zip(output["token_ids"], output["logprobs"]):
        assert entry["token_id"] == token_id == entry["top"][0]["token_id"], "greedy takes the likeliest"
        assert entry["logprob"] == entry["top"][0]["logprob"] >= entry["top"][1]["logprob"]
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert set(answer["kv"]) == {"blocks_peak", "blocks_shared_peak", "copies_on_write", "waste_percent", "prefill_mode"}


def test_generate_gives_the_golden_tokens(recall_goldens, tmp_path):
    lines = [{"prompt_ids": case["prompt_ids"], "max_tokens": 64, "temperature": 0, "ignore_eos": True} for case in recall_goldens["cases"]]
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    answers = generate("--input", file)
    for case, answer in zip(recall_goldens["cases"], answers, strict=True):
        assert answer["outputs"][0]["token_ids"] == case["greedy_ids"], case["prompt"]


def test_text_and_ids_are_the_same_prompt():
    [by_text] = generate("--prompt", "The dog", "--max-tokens", 4, "--temperature", 0)
    ids = ",".join(map(str, by_text["prompt_token_ids"]))
    [by_ids] = generate("--prompt-ids", ids, "--max-tokens", 4, "--temperature", 0)
    assert by_ids["outputs"] == by_text["outputs"]


def test_four_samples_share_their_prompt():
    prompt_ids = ",".join(str(1 + i % 500) for i in range(512))
    [answer] = generate("--prompt-ids", prompt_ids, "--n", 4, "--max-tokens", 8, "--seed", 5, "--ignore-eos")
    assert [o["index"] for o in answer["outputs"]] == [0, 1, 2, 3]
    assert len({tuple(o["token_ids"]) for o in answer["outputs"]}) > 1, "samples differ"
    assert answer["kv"]["blocks_shared_peak"] >= 32, "512 prompt tokens are 32 whole blocks of 16"
    assert answer["kv"]["blocks_peak"] <= 32 + 4 * 2


def test_forced_tokens_come_all_whatever_ends_a_text():
    [answer] = generate("--prompt-ids", "1,2", "--forced-token-ids", "0,5,0,6", "--stop-token-ids", "5", "--max-tokens", 4)
    assert answer["outputs"][0]["token_ids"] == [0, 5, 0, 6], "0 is the model's end"
    [answer] = generate("--prompt-ids", "1,2", "--forced-token-ids", "6,0", "--max-tokens", 4)
    assert answer["outputs"][0]["token_ids"] == [6, 0] and answer["outputs"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("flags", [(), ("--temperature", 0), ("--beam-width", 2), ("--forced-token-ids", "5"), ("--prompt-logprobs", 0)])
def test_a_model_that_gives_nan_fails_the_request(tmp_path, flags):
    model = model_with_nan_weights(tmp_path / "nan")
    done = quire("generate", "--model", model, "--prompt-ids", "1,2", "--max-tokens", 3, "--output", "json", *flags)
    assert done.returncode == 1 and "no finite logit for" in done.stderr, (done.stdout, done.stderr)
    assert '"token_ids":[0' not in done.stdout


def test_max_tokens_that_nobody_asked_for_fits_the_context():
    ids = ",".join(["5"] * 60)
    [answer] = generate("--prompt-ids", ids, "--max-context-tokens", 64, "--ignore-eos")
    assert len(answer["outputs"][0]["token_ids"]) == 4
    done = quire("generate", "--model", MODEL, "--prompt-ids", ids, "--max-context-tokens", 64, "--max-tokens", 16)
    assert done.returncode == 1 and "max_tokens may be at most 4" in done.stderr


def test_the_same_seed_gives_the_same_tokens():
    runs = [generate("--prompt", "Once", "--max-tokens", 12, "--seed", 7)[0]["outputs"] for _ in range(2)]
    assert runs[0] == runs[1]
    assert generate("--prompt", "Once", "--max-tokens", 12, "--seed", 8)[0]["outputs"] != runs[0]


def test_jsonl_keeps_the_order_and_takes_the_wires_fields(tmp_path):
    lines = [
        {"text": "Once", "sampling": {"max_tokens": 9, "temperature": 0}},
        {"prompt": "The", "max_tokens": 2, "temperature": 0, "stop": ["zzzz"]},
        {"token_ids": [0, 5], "max_tokens": 5, "n": 2, "seed": 1, "ignore_eos": True},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    answers = generate("--input", file)
    assert [len(a["outputs"][0]["token_ids"]) for a in answers] == [9, 2, 5]
    assert len(answers[2]["outputs"]) == 2


def test_flags_are_the_defaults_of_lines(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "Once"}\n{"prompt": "Once", "max_tokens": 2}\n')
    answers = generate("--input", file, "--max-tokens", 5, "--temperature", 0)
    assert [len(a["outputs"][0]["token_ids"]) for a in answers] == [5, 2]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "a", "top_pp": 1}', "in.jsonl:2: unknown field 'top_pp'"),
        ('{"prompt": "a", "sampling": {"tmp": 1}}', "in.jsonl:2: unknown field 'sampling.tmp'"),
        ('{"prompt": "a", "n": "two"}', "in.jsonl:2: sampling.n must be an integer"),
        ('{"prompt": 5}', "in.jsonl:2: prompt must be a text or a list of token ids, not 5"),
        ('{"prompt_ids": 5}', "in.jsonl:2: prompt_ids must be a list of token ids, not 5"),
        ('{"messages": "hi"}', 'in.jsonl:2: messages must be a list, not "hi"'),
        ('{"prompt": "a", "temperature": 1e400}', "in.jsonl:2: not valid JSON: the number 1e400 is out of range"),
        ('{"prompt": "a", "n": 1, "n": 2}', 'in.jsonl:2: key "n" is given twice'),
        ('{"prompt": "a", "sampling": {"n": 1, "n": 1}}', 'in.jsonl:2: key "n" is given twice'),
        ('{"prompt": "a"', "in.jsonl:2: not valid JSON at byte"),
        ("[1, 2]", "in.jsonl:2: the request must be an object"),
    ],
)
def test_a_bad_line_is_named_before_anything_runs(tmp_path, line, complaint):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    done = quire("generate", "--model", MODEL, "--input", file, "--output", "jsonl")
    assert done.returncode == 1 and complaint in done.stderr and done.stdout == ""


def test_invalid_utf8_is_named(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"prompt": "a\xff"}\n')
    done = quire("generate", "--model", MODEL, "--input", file)
    assert done.returncode == 1 and "in.jsonl:1: not UTF-8 at byte 13" in done.stderr


def test_a_refused_line_does_not_stop_the_others(tmp_path):
    lines = [{"prompt": "Once", "max_tokens": 2}, {"prompt_ids": [1, 4096]}, {"prompt": "a", "top_p": 2}, {"prompt_ids": [1] * 5000}, {"prompt": "The", "max_tokens": 3}]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    done = quire("generate", "--model", MODEL, "--input", file, "--output", "jsonl", "--temperature", 0)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and len(answers) == 5
    assert len(answers[0]["outputs"][0]["token_ids"]) == 2 and len(answers[4]["outputs"][0]["token_ids"]) == 3
    assert answers[1]["error"]["message"] == "token_ids has id 4096 at position 1; ids of this model run from 0 to 4095"
    assert answers[2]["error"]["field"] == "sampling.top_p" and answers[2]["error"]["code"] == "INVALID_ARGUMENT"
    assert "5000" in answers[3]["error"]["message"] and "4096" in answers[3]["error"]["message"], answers[3]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("generate", "--model", "/nonexistent", "--prompt", "a"), "/nonexistent"),
        (("generate", "--model", MODEL), "no prompt"),
        (("generate", "--model", MODEL, "--prompt", "a", "--input", "b"), "input"),
        (("generate", "--model", MODEL, "--prompt", "a", "--temprature", "0"), "--temprature"),
        (("generate", "--model", MODEL, "--prompt", "a", "--kv-cache-bytes", "1"), "kv_cache_bytes"),
        (("generate", "--model", MODEL, "--prompt", "a", "--device", "cuda-host", "--kv-cache-bytes", str(2**40)), "host shim has 3768 MiB to take (the lesser of "),
        (("generate", "--model", MODEL, "--prompt", "a", "--device", "cuda-host", "--kv-cache-bytes", str(2**40), "--gpu-memory-utilization", "0.25"), "free and 1024, which is gpu_memory_utilization 0.25 of 4096); weights 21 + workspace "),
        (("generate", "--model", MODEL, "--prompt", "a", "--device", "cuda-host", "--gpu-memory-utilization", "0.001"), "(raise gpu_memory_utilization, or take a smaller model"),
        (("serve", "--model", MODEL, "--port", "0", "--host", "0.0.0.0"), "--behind-proxy"),
        (("serve", "--model", "/nonexistent", "--port", "0"), "/nonexistent"),
        (("serve", "--model", MODEL, "--port", "70000"), "port is 70000; it must be from 0 to 65535"),
        (("generate", "--model", MODEL, "--prompt", "a", "--preemption-mode", "swap"), "swap_space_bytes"),
        (("serve", "--model", MODEL, "--port", "0", "--prefix-cache=false", "--host-kv-bytes", "1000000"), "host_kv_bytes is 1000000 and prefix_cache false"),
        (("serve", "--model", MODEL, "--port", "0", "--prefix-cache=false", "--disk-kv-dir", "/nonexistent", "--disk-kv-bytes", "1000000"), "disk_kv_bytes is 1000000 and prefix_cache false"),
        (("serve", "--model", MODEL, "--max-kv-retention-class", "-1"), "max_kv_retention_class is -1"),
        (("tokenize", "--model", "/nonexistent", "--input", "-"), "/nonexistent"),
        (("inspect", "kv", "--config", "/nonexistent.json"), "/nonexistent.json"),
        (("inspect", "model", "/nonexistent"), "/nonexistent"),
        (("frobnicate",), "no command 'frobnicate"),
        (("healthcheck", "--address", "127.0.0.1:1"), "127.0.0.1:1"),
    ],
)
def test_a_mistake_gets_one_clear_line(arguments, complaint):
    done = quire(*arguments, stdin="[]")
    assert done.returncode in (1, 2)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("quire: ")]
    assert len(complaints) == 1 and complaint in complaints[0], done.stderr
    assert done.stdout == ""


def test_a_device_that_is_not_there_is_no_reason_to_take_another():
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a card")
    for command in (["generate", "--prompt", "a"], ["serve", "--port", "0"]):
        done = quire(*command, "--model", MODEL, "--device", "cuda")
        assert done.returncode == 1 and done.stdout == ""
        complaints = [line for line in done.stderr.splitlines() if line.startswith("quire: ")]
        assert len(complaints) == 1, done.stderr
        assert "CUDA cannot be used: " in complaints[0] or "this build has no CUDA" in complaints[0]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--max-step-tokens", 10], "max_step_tokens is 10 and max_sequences 256"),
        (["--max-priority-wait-ms", 0], "max_priority_wait_ms is 0; it must be from 1 to"),
        (["--drain-timeout-ms", 2**63 - 1], "drain_timeout_ms is 9223372036854775807; it must be from 0 to"),
        (["--max-queued-kv-factor", "1e30"], "max_queued_kv_factor is 1e+30; it must be above 0"),
        (["--kv-policies-allowed", "magic"], "kv_policies_allowed names 'magic'"),
        (["--deadline-ms", 2**63 - 1], "deadline_ms is 9223372036854775807; it must be from 1 to"),
    ],
)
def test_a_limit_out_of_range_is_told_with_its_range(flags, complaint):
    done = quire("generate", "--model", MODEL, "--prompt", "a", "--log-level", "info", *flags)
    assert done.returncode == 1 and complaint in done.stderr
    assert ("engine_start" in done.stderr) == ("--deadline-ms" in flags), "a fault of the configuration is told before the weights are read"


def test_a_prompt_is_asked_for_as_a_flag_is():
    done = quire("generate", "--model", MODEL)
    assert done.returncode == 2 and "no prompt; give one of --prompt, --prompt-ids, --input" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "--input", "--config", "tokenize"])
def test_json_that_nests_without_end_is_refused(tmp_path, command):
    deep = "[" * 300_000 + "]" * 300_000
    file = tmp_path / "config.json"
    name = "max_sequences" if command == "--config" else "architectures"
    file.write_text(deep if command == "tokenize" else f'{{"{name}": {deep}}}')
    done = {
        "inspect": lambda: quire("inspect", "model", tmp_path),
        "--input": lambda: quire("generate", "--model", MODEL, "--input", file),
        "--config": lambda: quire("generate", "--model", MODEL, "--prompt", "a", "--config", file),
        "tokenize": lambda: quire("tokenize", "--model", MODEL, "--input", file),
    }[command]()
    assert done.returncode in (1, 2) and "nested more than 64 deep" in done.stderr, (done.returncode, done.stderr[:500])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("tokenizer.json", "tokenize"),
        ("tokenizer_config.json", "generate"),
        ("chat_template.jinja", "generate"),
        ("model.safetensors", "inspect"),
        ("generation_config.json", "inspect"),
    ],
)
def test_a_link_to_itself_is_named(tmp_path, name, command):
    for file in MODEL.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(name)
    texts = tmp_path / "texts"
    texts.write_text('["a"]')
    done = {
        "tokenize": lambda: quire("tokenize", "--model", tmp_path, "--input", texts),
        "generate": lambda: quire("generate", "--model", tmp_path, "--prompt", "a", "--max-tokens", 1),
        "inspect": lambda: quire("inspect", "model", tmp_path),
    }[command]()
    assert done.returncode == 1 and f"/{name}: " in done.stderr, (done.returncode, done.stderr[:500])
    assert "Too many levels of symbolic links" in done.stderr


def test_a_model_says_how_requests_are_sampled_that_do_not(tmp_path):
    for file in MODEL.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    ids = json.loads((MODEL / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**ids, "temperature": 0}))
    ask = ["--prompt", "Once upon", "--max-tokens", 12, "--seed", 3, "--output", "json"]
    ids_of = lambda *flags: json.loads(quire("generate", *ask, *flags).stdout)["outputs"][0]["token_ids"]  # noqa: E731
    greedy, sampled = ids_of("--model", MODEL, "--temperature", 0), ids_of("--model", MODEL)
    assert greedy != sampled, "the test is of no use where they agree"
    assert ids_of("--model", tmp_path) == greedy
    assert ids_of("--model", tmp_path, "--temperature", 1) == sampled, "a flag wins, at the value that is the neutral default too"
    shown = json.loads(quire("inspect", "model", tmp_path, "--output", "json").stdout)
    assert shown["default_sampling"]["temperature"] == 0 and shown["default_sampling"]["top_p"] == 1


def test_help_of_a_group_lists_its_commands():
    done = quire("inspect", "--help")
    assert done.returncode == 0 and "inspect kv" in done.stdout and "inspect model" in done.stdout and "serve" not in done.stdout.split("usage")[1].split("quire COMMAND --help")[0]


def test_what_did_not_happen_has_no_time():
    (answer,) = generate("--prompt-ids", "5", "--max-tokens", 0)
    assert "first_token_ms" not in answer["timings"] and answer["timings"]["total_ms"] >= 0


def test_texts_of_several_outputs_say_whose_they_are(tmp_path):
    lines = [json.dumps({"prompt": prompt, "max_tokens": 2, "n": n, "seed": 1}) for prompt, n in (("Once", 1), ("The cat", 2))]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = quire("generate", "--model", MODEL, "--input", tmp_path / "in.jsonl", "--output", "text")
    assert re.findall(r"^\[\d+\.\d+\]", done.stdout, flags=re.M) == ["[1.0]", "[2.0]", "[2.1]"]
    assert "[R.I]" in quire("generate", "--help").stdout


def test_the_demo_shows_a_line_for_each_step():
    done = subprocess.run([sys.executable, ROOT / "tools" / "demo.py", "--binary", BINARY, "--model", MODEL], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python" / "src")})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = re.findall(r"^  (.+?) +(?:done|FAILED), \d+ s$", done.stderr, flags=re.M)
    assert steps == ["load demo and start the server", "drain the server"]


def test_a_full_disk_is_no_success(tmp_path):
    (tmp_path / "texts.json").write_text('["a"]')
    with open("/dev/full", "w") as full:
        done = subprocess.run([BINARY, "tokenize", "--model", MODEL, "--input", tmp_path / "texts.json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "standard output: No space left on device" in done.stderr


def test_a_prompt_of_one_token_has_prompt_logprobs():
    (answer,) = generate("--prompt-ids", "5", "--max-tokens", 1, "--prompt-logprobs", 0)
    assert len(answer["prompt_logprobs"]) == 1 and answer["prompt_logprobs"][0].get("logprob") is None


def test_a_busy_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = quire("serve", "--model", MODEL, "--port", port)
    assert done.returncode == 1
    assert f"quire: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_tokenize_and_detokenize_are_inverse(tmp_path):
    texts = ["Once upon a time", "", "naïve café 漢字 🙂", "two\nlines"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    ids = json.loads(quire("tokenize", "--model", MODEL, "--input", tmp_path / "texts.json", "--no-special-tokens", "--output", "json").stdout)
    assert [type(i) for i in ids] == [list] * 4 and ids[1] == []
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    back = quire("detokenize", "--model", MODEL, "--input", tmp_path / "ids.json", "--output", "json")
    assert json.loads(back.stdout) == texts


def peak_bytes(*arguments: object) -> int:
    """The most memory that a command held at once."""
    process = subprocess.Popen([BINARY, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_a_long_text_is_read_in_little_memory(tmp_path):
    text = "the fox saw a lazy dog, and so on; " * 100_000
    peaks = []
    for name, content in (("short", "a"), ("long", text)):
        (tmp_path / name).write_text(json.dumps([content]))
        peaks.append(peak_bytes("tokenize", "--model", MODEL, "--input", tmp_path / name))
    assert peaks[1] - peaks[0] < 40 * len(text), "117 times its size where it was read as a whole"


def test_special_tokens_are_text_only_when_asked():
    def ids(*flags: str) -> list[int]:
        done = quire("tokenize", "--model", MODEL, "--input", "-", "--no-special-tokens", *flags, stdin='["<|endoftext|>"]')
        return json.loads(done.stdout)[0]

    assert ids() == [0]
    assert 0 not in ids("--special-as-text") and len(ids("--special-as-text")) > 1


def test_a_directory_of_tokenizer_files_is_enough(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    done = quire("tokenize", "--model", tmp_path, "--input", "-", stdin='["Once"]')
    assert done.returncode == 0 and json.loads(done.stdout) == [json.loads(quire("tokenize", "--model", MODEL, "--input", "-", stdin='["Once"]').stdout)[0]]


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
        assert [c["bytes"] for c in report["contexts"]] == [8_192_000_000, 81_920_000_000]
        assert report["groups"] == [{"kind": "full_attention", "window_tokens": 0, "layers": 40, "bytes_per_token": 819_200}]


def test_inspect_kv_stops_windowed_layers_at_their_window(tmp_path):
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": 4096, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = json.loads(quire("inspect", "kv", "--config", tmp_path / "config.json", "--tokens", "1000,100000", "--output", "json").stdout)
    assert report["bytes_per_token"] == 131_072
    assert [c["bytes"] for c in report["contexts"]] == [131_072_000, 131_072 * 4096]


def test_inspect_model_tells_shape_and_weights():
    report = json.loads(quire("inspect", "model", MODEL, "--output", "json").stdout)
    assert report["layers"] == 6
    assert report["kv_bytes_per_token"] == {"cuda": {"dtype": "bf16", "bytes": 6144}, "cpu": {"dtype": "f32", "bytes": 12288}}
    assert report["weights"]["bytes"] == 2 * report["parameters"]
    assert report["tokenizer"] == {"tokens": 4096, "ids_without_a_token": 0} and report["chat_template"] is False


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


def test_a_config_file_and_the_environment_set_flags(tmp_path):
    config = tmp_path / "quire.json"
    config.write_text(json.dumps({"model": str(MODEL), "max_tokens": 3, "temperature": 0}))
    run = lambda *extra, **env: json.loads(quire("generate", "--config", config, "--prompt", "Once", "--output", "json", *extra, environment=env).stdout)  # noqa: E731
    assert run()["usage"]["completion_tokens"] == 3
    assert run(QUIRE_MAX_TOKENS="4")["usage"]["completion_tokens"] == 4
    assert run("--max-tokens", "5", QUIRE_MAX_TOKENS="4")["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("command", ["serve", "generate", "chat", "tokenize", "detokenize", "inspect kv", "inspect model", "healthcheck"])
def test_help_gives_each_flag_a_default_and_an_environment_name(command):
    done = quire(*command.split(), "--help")
    assert done.returncode == 0
    blocks = re.split(r"^  (?=-)", done.stdout, flags=re.MULTILINE)[1:]
    flags = [block for block in blocks if not block.startswith("-h,--help")]
    assert flags
    for block in flags:
        assert "[default: " in block and "[env: QUIRE_" in block, block


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("QUIRE_PORT", "high", "QUIRE_PORT: 'high' is not an integer"),
        ("QUIRE_DEVICE", "gpu", "QUIRE_DEVICE: 'gpu' is not one of auto, cpu"),
        ("QUIRE_PREFIX_CACHE", "maybe", "QUIRE_PREFIX_CACHE: 'maybe' is not true or false"),
    ],
)
def test_a_bad_environment_variable_is_named(variable, value, complaint):
    done = quire("serve", "--model", MODEL, environment={variable: value})
    assert done.returncode == 2 and complaint in done.stderr and "--" + variable[6:].lower() not in done.stderr, done.stderr
    flag = "--" + variable[6:].lower().replace("_", "-")
    overridden = quire("serve", "--model", "/none", f"{flag}={'0' if variable == 'QUIRE_PORT' else 'cpu' if variable == 'QUIRE_DEVICE' else 'true'}", environment={variable: value})
    assert overridden.returncode == 1 and variable not in overridden.stderr, overridden.stderr


def test_a_bad_list_in_the_environment_is_named():
    done = quire("generate", "--model", MODEL, "--prompt", "a", environment={"QUIRE_STOP_TOKEN_IDS": "1,x"})
    assert done.returncode == 2 and "QUIRE_STOP_TOKEN_IDS: 'x' is not an integer" in done.stderr, done.stderr


def test_what_kubernetes_sets_for_a_service_is_ignored():
    done = quire("serve", "--model", "/none", environment={"QUIRE_PORT": "tcp://10.0.0.1:50051"})
    assert done.returncode == 1 and "/none" in done.stderr
    assert "environment_ignored name=QUIRE_PORT" in done.stderr and "Kubernetes" in done.stderr


def test_a_host_without_an_address_is_no_public_address():
    done = quire("serve", "--model", MODEL, "--host", "notahost.invalid")
    assert done.returncode == 1 and "--host 'notahost.invalid' names no address: " in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max-n", 0),
        ("max-beam-width", -1),
        ("max-stop-strings", -1),
        ("max-stop-bytes", 0),
        ("max-logprobs", -5),
        ("max-logit-bias", -1),
        ("max-bad-words", -1),
        ("max-bad-word-tokens", 0),
        ("max-stop-token-ids", 2_000_000),
    ],
)
def test_a_limit_of_requests_is_checked_before_the_model_is_read(flag, value):
    done = quire("serve", "--model", "/none", "--port", 0, f"--{flag}={value}")
    assert done.returncode == 1 and f"{flag.replace('-', '_')} is {value}; it must be from " in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (["--prompt-ids", "1,,2"], 2, "--prompt-ids '1,,2' has an empty entry"),
        (["--prompt-ids=1,"], 2, "--prompt-ids '1,' has an empty entry"),
        (["--prompt", "a", "--logit-bias", "42:200"], 1, "logit_bias of token id 42 is 200; it must lie in [-100, 100]"),
        (["--prompt", "a", "--served-model-name", "a\nREADY grpc=evil"], 1, "served_model_name has a control character (byte 0x0a)"),
    ],
)
def test_a_message_names_the_thing_the_value_and_the_limit(flags, code, complaint):
    done = quire("generate", "--model", MODEL, *flags)
    assert done.returncode == code and complaint in done.stderr, done.stderr


@pytest.mark.parametrize("bad", [-1, 4096, 2**40])
def test_detokenize_names_the_id_and_its_place(bad, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps([[1], [2, bad]]))
    done = quire("detokenize", "--model", MODEL, "--input", tmp_path / "ids.json")
    assert done.returncode == 1 and f"entry 1 has {bad} at position 1; token ids run from 0 to 4095" in done.stderr, done.stderr


def test_chat_needs_a_template(tmp_path):
    for name in os.listdir(MODEL):
        if "tokenizer_config" not in name and "chat_template" not in name:
            (tmp_path / name).symlink_to(MODEL / name)
    done = quire("chat", "--model", tmp_path, stdin="hello\n")
    assert done.returncode == 1 and "no chat template" in done.stderr


def chat_model(directory: Path) -> Path:
    """The demo model with a chat template."""
    for name in os.listdir(MODEL):
        if name != "tokenizer_config.json":
            (directory / name).symlink_to(MODEL / name)
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return directory


def test_a_chat_goes_on_past_the_context(tmp_path):
    turns = [f"Tell me about a dog, a cat and the number {i}." for i in range(12)]
    flags = ("--max-context-tokens", 160, "--temperature", 0, "--ignore-eos", "--output", "jsonl")
    done = quire("chat", "--model", chat_model(tmp_path), *flags, stdin="\n".join(turns))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(answers) == len(turns), done.stderr
    assert all(a["usage"]["prompt_tokens"] + a["usage"]["completion_tokens"] <= 160 for a in answers)
    assert all(a["usage"]["completion_tokens"] >= 40 for a in answers), "room for an answer is made"
    assert "of the oldest turns forgotten" in done.stderr and "160 tokens" in done.stderr
    done = quire("chat", "--model", tmp_path, *flags, stdin="word " * 200 + "\nA dog.\n")
    assert "at most 159 (max_context_tokens 160" in done.stderr and len(done.stdout.splitlines()) == 1, "the next line is answered"


def test_chat_answers_each_line_and_finds_its_history_in_the_cache(tmp_path):
    chat_model(tmp_path)
    done = quire("chat", "--model", tmp_path, "--max-tokens", 24, "--temperature", 0, "--output", "jsonl", stdin="Tell me about a dog and a cat.\nAnd then?\n/exit\n")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"], "the second turn begins with the first"
