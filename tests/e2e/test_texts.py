"""tokenize, detokenize and chat, as a person or a script uses them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import BINARY, MODEL, quire


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
