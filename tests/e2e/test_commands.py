"""What all commands have in common: flags, settings of the environment, help, and one clear line for each mistake."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BINARY, MODEL, ROOT, Server, quire


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("generate", "--model", "/nonexistent", "--prompt", "a"), "/nonexistent"),
        (("generate", "--model", MODEL), "no prompt"),
        (("generate", "--model", MODEL, "--prompt", "a", "--input", "b"), "input"),
        (("generate", "--model", MODEL, "--prompt", "a", "--temprature", "0"), "not understood: --temprature 0;"),
        (("generate", "--model", MODEL, "--prompt", "a", "--n", "1", "--n", "2"), "--n is given 2 times; it takes one value;"),
        (("generate", "--model", MODEL, "--prompt", "a", "--max-tokens"), "--max-tokens: 1 required INT missing"),
        (("generate", "--model", MODEL, "--prompt", "a", "--kv-cache-bytes", "1"), "kv_cache_bytes"),
        (("generate", "--model", MODEL, "--prompt", "a", "--device", "cuda-host", "--kv-cache-bytes", str(2**40)), "host shim has 3768 MiB to take (the lesser of "),
        (("generate", "--model", MODEL, "--prompt", "a", "--device", "cuda-host", "--kv-cache-bytes", str(2**40), "--gpu-memory-utilization", "0.25"), "free and 1024, which is gpu_memory_utilization 0.25 of 4096); weights 21 + workspace "),
        (("generate", "--model", MODEL, "--prompt", "a", "--device", "cuda-host", "--gpu-memory-utilization", "0.001"), "(raise gpu_memory_utilization, or take a smaller model"),
        (("serve", "--model", MODEL, "--port", "0", "--host", "0.0.0.0"), "--behind-proxy"),
        (("serve", "--model", "/nonexistent", "--port", "0"), "/nonexistent"),
        (("serve", "--model", MODEL, "--port", "70000"), "port is 70000; it must be from 0 to 65535"),
        (("generate", "--model", MODEL, "--prompt", "a", "--preemption-mode", "swap"), "swap_space_bytes"),
        (("generate", "--model", MODEL, "--prompt", "a", "--preemption-mode", "recompute", "--swap-space-bytes", "1000000"), "swap_space_bytes is 1000000 and preemption_mode `recompute`, which swaps nothing"),
        (("generate", "--model", MODEL, "--prompt", "a", "--dump-kv"), "--dump-kv is not shown as text; it needs --output json or jsonl"),
        (("generate", "--model", MODEL, "--prompt", "a", "--logprobs", "0"), "--logprobs is not shown as text;"),
        (("chat", "--model", MODEL, "--prompt-logprobs", "0"), "--prompt-logprobs is not shown as text;"),
        (("serve", "--model", MODEL, "--port", "0", "--prefix-cache=false", "--host-kv-bytes", "1000000"), "host_kv_bytes is 1000000 and prefix_cache false"),
        (("serve", "--model", MODEL, "--port", "0", "--prefix-cache=false", "--disk-kv-dir", "/nonexistent", "--disk-kv-bytes", "1000000"), "disk_kv_bytes is 1000000 and prefix_cache false"),
        (("serve", "--model", MODEL, "--max-kv-retention-class", "-1"), "max_kv_retention_class is -1"),
        (("serve", "--model", MODEL, "--max-kv-retention-cost", "0.5"), "max_kv_retention_cost is 0.5"),
        (("generate", "--model", MODEL, "--prompt", "a", "--max-kv-retention-cost", "50", "--kv-retention-cost", "51"), "kv_retention.cost is 51; it must be above 0 and at most 50 (max_kv_retention_cost)"),
        (("tokenize", "--model", "/nonexistent", "--input", "-"), "/nonexistent"),
        (("inspect", "kv", "--config", "/nonexistent.json"), "/nonexistent.json"),
        (("inspect", "model", "/nonexistent"), "/nonexistent"),
        (("generate", "--model", "", "--prompt", "a"), "--model is empty"),
        (("inspect", "model", ""), "DIR is empty"),
        (("generate", "--model", MODEL, "--prompt", "a", "--served-model-name", "m\udcff"), "served_model_name is not UTF-8 at byte 1"),
        (("generate", "--model", MODEL, "--prompt", "a", "--stop", "\udcff"), "--stop is not UTF-8 at byte 0"),
        (("chat", "--model", MODEL, "--system", "\udcff"), "--system is not UTF-8 at byte 0"),
        (("generate", "--model", MODEL, "--prompt", "a", "--logit-bias", "5:60", "--logit-bias", "5:60"), "--logit-bias has token id 5 more than once"),
        (("generate", "--model", MODEL, "--prompt", "a", "--bad-words", "1,"), "--bad-words '1,' is not a list of token ids"),
        (("generate", "--model", MODEL, "--prompt", "a", "--beam-width", "2", "--best-of", "1"), "best_of and beam_width exclude each other"),
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


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--kv-policy", "x" * 100_000), "request 1: kv_policy has 100000 bytes; at most 1024"),
        (("--default-kv-policy", "x" * 1025), "default_kv_policy: kv_policy has 1025 bytes; at most 1024"),
        (("--kv-policy", "win\ndow\x1b[31m:size=4"), r"request 1: unknown kv_policy 'win\ndow\u001b[31m'; known: none, window, stream, tova, h2o"),
        (("--device", "c\np\ru"), r"--device: 'c\np\u000du' is not one of auto, cpu, cuda, cuda-host; quire generate --help lists the flags"),
        (("--weights", "\x9b2J"), r"weights is `\u009b2J`; `checkpoint`, `random` or `random:SEED` is wanted"),
    ],
)
def test_a_mistake_is_one_line_whatever_was_given(flags, complaint):
    done = quire("generate", "--model", MODEL, "--prompt", "a", "--output", "json", *flags)
    assert done.returncode in (1, 2) and done.stderr == f"quire: {complaint}\n"
    assert "kv_policy" not in done.stdout or json.loads(done.stdout)["error"]["message"] == complaint.removeprefix("request 1: ")


@pytest.mark.parametrize("command", [["--version"], ["serve", "--model", MODEL, "--port", "0"]])
def test_a_closed_standard_output_is_an_error(command):
    done = subprocess.run([BINARY, *map(str, command)], stderr=subprocess.PIPE, text=True, timeout=60, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, "quire: standard output is closed\n")


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


def test_a_simulation_that_cannot_run_is_told_from_one_that_broke(tmp_path):
    (card := tmp_path / "card.json").write_text("{}")
    for flags, complaint in ((("--sequences", 0), "sequences is 0"), (("--card", card), "`read_bytes_per_s` is missing")):
        done = quire("bench", "sim", "--steps", 100, *flags)
        assert done.returncode == 2 and complaint in done.stderr, done.stderr
    report = json.loads(quire("bench", "sim", "--steps", 3000, "--output", "json").stdout)
    assert report["violations"] == [] and report["ttft_ms"]["sampled"] == report["ttft_ms"]["count"] > 0


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


def test_help_of_a_group_lists_its_commands():
    done = quire("inspect", "--help")
    assert done.returncode == 0 and "inspect kv" in done.stdout and "inspect model" in done.stdout and "serve" not in done.stdout.split("usage")[1].split("quire COMMAND --help")[0]


def test_the_demo_shows_a_line_for_each_step():
    done = subprocess.run([sys.executable, ROOT / "tools" / "demo.py", "--binary", BINARY, "--model", MODEL], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python" / "src")})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = re.findall(r"^  (.+?) +(?:done|FAILED), \d+ s$", done.stderr, flags=re.M)
    assert steps == ["load demo and start the server", "drain the server"]
    counters = re.findall(r"^  ([a-z_]+_total) +(\d+)$", done.stdout, flags=re.M)
    assert ("requests_finished_total", "4") in counters and not [name for name, count in counters if count == "0"]


def test_the_demo_says_what_context_it_needs(tmp_path):
    for file in MODEL.iterdir():
        if file.is_file() and file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps({**json.loads((MODEL / "config.json").read_text()), "max_position_embeddings": 512}))
    done = subprocess.run([sys.executable, ROOT / "tools" / "demo.py", "--binary", BINARY, "--model", tmp_path], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python" / "src")})  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"^quire: the demo needs \d{4} tokens of context .*; this model has 512$", done.stderr, flags=re.M), done.stderr


def processes_of_session(session: int) -> list[str]:
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    return [stat for stat in stats if stat.rpartition(")")[2].split()[3] == str(session)]


@pytest.mark.parametrize("ends_by", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_ends_its_server_in_few_words(ends_by):
    demo = subprocess.Popen([sys.executable, ROOT / "tools" / "demo.py", "--binary", BINARY, "--model", MODEL], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python" / "src")},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    first_line = demo.stdout.readline()
    assert len(processes_of_session(demo.pid)) == 2
    os.killpg(demo.pid, ends_by)  # as a terminal does
    _, err = demo.communicate(timeout=60)
    assert first_line.startswith("demo: ")
    assert demo.returncode == (-signal.SIGINT if ends_by == signal.SIGINT else 128 + signal.SIGTERM), err
    assert "Traceback" not in err and (ends_by == signal.SIGTERM or err.splitlines()[-1] == "quire: interrupted")
    assert processes_of_session(demo.pid) == []


def test_the_demo_takes_a_reader_that_leaves_calmly():
    demo = subprocess.Popen([sys.executable, ROOT / "tools" / "demo.py", "--binary", BINARY, "--model", MODEL], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python" / "src")})  # fmt: skip
    demo.stdout.readline()
    demo.stdout.close()
    err = demo.stderr.read()
    demo.stderr.close()
    assert demo.wait(timeout=60) == 1
    assert [line.split("  ")[1] for line in err.splitlines()] == ["load demo and start the server", "drain the server"], err


# A little, which the end writes, and more than is kept until then.
@pytest.mark.parametrize("num_texts", [1, 5000])
def test_a_full_disk_is_no_success(tmp_path, num_texts):
    (tmp_path / "texts.json").write_text(json.dumps(["a"] * num_texts))
    with open("/dev/full", "w") as full:
        done = subprocess.run([BINARY, "tokenize", "--model", MODEL, "--input", tmp_path / "texts.json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith("quire: ") and "No space left on device" in done.stderr, done.stderr


def test_a_busy_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = quire("serve", "--model", MODEL, "--port", port)
    assert done.returncode == 1
    assert f"quire: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_a_config_file_and_the_environment_set_flags(tmp_path):
    config = tmp_path / "quire.json"
    config.write_text(json.dumps({"model": str(MODEL), "max_tokens": 3, "temperature": 0}))
    run = lambda *extra, **env: json.loads(quire("generate", "--config", config, "--prompt", "Once", "--output", "json", *extra, environment=env).stdout)  # noqa: E731
    assert run()["usage"]["completion_tokens"] == 3
    assert run(QUIRE_MAX_TOKENS="4")["usage"]["completion_tokens"] == 4
    assert run("--max-tokens", "5", QUIRE_MAX_TOKENS="4")["usage"]["completion_tokens"] == 5


def test_of_flags_that_exclude_each_other_the_first_in_precedence_counts(tmp_path):
    config = tmp_path / "quire.json"
    config.write_text(json.dumps({"model": str(MODEL), "max_tokens": 1, "prompt": "Once"}))
    run = lambda *flags, **env: quire("generate", "--config", config, "--output", "json", *flags, environment=env)  # noqa: E731
    ids = lambda *flags, **env: json.loads(run(*flags, **env).stdout)["prompt_token_ids"]  # noqa: E731
    from_file = ids()
    assert from_file != [7, 8] and ids(QUIRE_PROMPT_IDS="7,8") == [7, 8]
    assert ids("--prompt-ids", "7,8") == ids("--prompt-ids=7,8", QUIRE_PROMPT="Once", QUIRE_INPUT="/none") == [7, 8]
    assert ids("--prompt", "Once", QUIRE_PROMPT_IDS="7,8") == from_file
    both = run("--prompt", "a", "--prompt-ids", "7,8")
    assert both.returncode == 2 and "excludes" in both.stderr
    both = run(QUIRE_PROMPT="a", QUIRE_PROMPT_IDS="7,8")
    assert both.returncode == 2 and "excludes" in both.stderr
    config.write_text(json.dumps({"model": str(MODEL), "prompt": "Once", "prompt_ids": [7, 8]}))
    both = run()
    assert both.returncode == 2 and "'prompt' and 'prompt_ids' exclude each other" in both.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"max_tokens": 3, "max_tokens": 4}', 'key "max_tokens" is given twice'),
        ('{"max_tokens": 3}\0{"max_tokens": 4}', "not valid JSON at byte 18, a NUL byte"),
    ],
)
def test_a_config_file_says_one_thing(tmp_path, text, complaint):
    config = tmp_path / "quire.json"
    config.write_text(text)
    done = quire("generate", "--model", MODEL, "--prompt", "a", "--config", config)
    assert done.returncode == 2 and f"--config {config}: {complaint}" in done.stderr


def test_no_address_space_for_the_cache_names_the_limit():
    limit = 1_000_000_000  # of which the process takes some 150 MB before; a small machine has the cache's 1.6 GB free
    done = quire("generate", "--model", MODEL, "--prompt", "a", "--threads", 1, "--kv-cache-bytes", 1_600_000_000, address_space=limit)
    assert done.returncode == 1
    assert re.search(rf"cache needs \d+ bytes of host memory; \d+ bytes are free, and RLIMIT_AS \(ulimit -v\) leaves \d+ bytes of {limit}", done.stderr), done.stderr


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_tokenizer_that_lacks_ids_of_the_model_is_told_at_the_start(tmp_path, command):
    for file in MODEL.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] < 4000]
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text: i for text, i in vocabulary.items() if i < 4000}
    tokenizer["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = "ids_without_a_token ids=96 vocab_size=4096"
    if command == "generate":
        whole, part = (quire("generate", "--model", model, "--prompt-ids", "7", "--max-tokens", 1) for model in (MODEL, tmp_path))
        assert (whole.returncode, part.returncode) == (0, 0), part.stderr
        assert line in part.stderr and "ids_without_a_token" not in whole.stderr
    else:
        server = Server(model=tmp_path)
        server.stop()
        assert sum(line in said for said in server.log) == 1, server.log


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
