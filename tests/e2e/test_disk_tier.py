"""The prefix cache's disk tier through the real server: what it keeps over a restart, and what it says when it cannot."""

import random
import shutil
import time

import pytest
from conftest import MODEL, Server, quire

from quire_client import Client

DISK_BYTES = 64 << 20
PROMPT = [1 + i % 300 for i in range(400)]


def ask(client: Client, prompt: list[int], **options):
    return client.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True, **options).result()


def flags(directory, *more: object) -> tuple:
    return ("--disk-kv-dir", directory, "--disk-kv-bytes", DISK_BYTES, *more)


def settled(client: Client, blocks: int) -> None:
    """Until the disk has so many blocks and nothing is being copied."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        load = client.load()
        if load.disk_tier.blocks_cached >= blocks and load.blocks_held == 0:
            return
        time.sleep(0.02)
    raise AssertionError(f"the disk has {load.disk_tier.blocks_cached} blocks, not {blocks}")


def test_a_restarted_server_finds_what_the_one_before_it_computed(tmp_path):
    for more in ((), ("--host-kv-bytes", DISK_BYTES)):
        directory = tmp_path / f"tiers{len(more)}"
        directory.mkdir()
        server = Server(*flags(directory, *more))
        with Client(server.address) as client:
            first = ask(client, PROMPT, cache_salt="tenant")
            assert first.usage.cached_tokens == 0
            settled(client, len(PROMPT) // 16)
            assert client.load().disk_kv_state == "on"
        assert server.stop() == 0

        server = Server(*flags(directory, *more))
        with Client(server.address) as client:
            other = ask(client, PROMPT, cache_salt="another tenant")
            again = ask(client, PROMPT, cache_salt="tenant")
            load = client.load()
        assert server.stop() == 0
        assert other.usage.cached_tokens == 0
        assert again.usage.cached_tokens >= 384
        assert again.outputs[0].token_ids == first.outputs[0].token_ids == other.outputs[0].token_ids
        assert load.disk_tier.hit_tokens_total >= 384
        assert 0.4 < load.disk_tier.hit_rate < 0.6, "one of two prompts"
        assert load.disk_tier.read_failures_total == load.totals["disk_corrupt_blocks_total"] == 0
        assert (load.host_tier is None) == (more == ())


def test_damaged_blocks_are_computed_again_and_counted(tmp_path):
    server = Server(*flags(tmp_path))
    with Client(server.address) as client:
        first = ask(client, PROMPT)
        settled(client, len(PROMPT) // 16)
    assert server.stop() == 0
    blocks = tmp_path / "quire-kv.blocks"
    whole = bytearray(blocks.read_bytes())
    for at in range(0, len(whole), 4096):
        whole[at] ^= 1
    blocks.write_bytes(whole)

    server = Server(*flags(tmp_path))
    with Client(server.address) as client:
        again = ask(client, PROMPT)
        load = client.load()
        assert again.outputs[0].token_ids == first.outputs[0].token_ids
        assert again.usage.cached_tokens == 0
        assert load.totals["disk_corrupt_blocks_total"] > 0
        settled(client, len(PROMPT) // 16)
    assert server.stop() == 0
    assert sum("disk_kv_corrupt" in line for line in server.log) == 1, "the first is logged, the others are counted"


def test_damaged_records_are_logged_and_counted_at_the_start(tmp_path):
    server = Server(*flags(tmp_path))
    with Client(server.address) as client:
        first = ask(client, PROMPT)
        settled(client, len(PROMPT) // 16)
    assert server.stop() == 0
    index = tmp_path / "quire-kv.index"
    whole = bytearray(index.read_bytes())
    records = range(4096, len(whole), 2048)
    written = sum(any(whole[at : at + 2048]) for at in records)
    whole[4096:] = random.Random(1).randbytes(len(whole) - 4096)
    index.write_bytes(whole)

    server = Server(*flags(tmp_path))
    with Client(server.address) as client:
        load = client.load()
        again = ask(client, PROMPT)
        settled(client, len(PROMPT) // 16)
    assert server.stop() == 0
    assert written >= len(PROMPT) // 16
    assert load.totals["disk_corrupt_blocks_total"] == len(records)
    assert again.outputs[0].token_ids == first.outputs[0].token_ids
    assert again.usage.cached_tokens == 0
    assert sum("disk_kv_corrupt" in line and f"records={len(records)}" in line for line in server.log) == 1, server.log


def test_a_start_that_fails_for_room_leaves_no_files(tmp_path):
    done = quire("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1, "--disk-kv-dir", tmp_path, "--disk-kv-bytes", 1 << 55)
    assert done.returncode != 0 and "bytes are free there" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_used_is_refused_by_name_or_gone_on_without(tmp_path):
    missing = tmp_path / "none"
    done = quire("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1, *flags(missing))
    assert done.returncode != 0 and f"disk_kv_dir `{missing}`: cannot be opened: No such file" in done.stderr
    done = quire("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1, *flags(missing, "--disk-kv-on-error", "ignore"))
    assert done.returncode == 0, done.stderr
    done = quire("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1, "--disk-kv-dir", tmp_path)
    assert done.returncode != 0 and "a disk tier needs both" in done.stderr

    server = Server(*flags(missing, "--disk-kv-on-error", "ignore"))
    with Client(server.address) as client:
        load = client.load()
    assert server.stop() == 0
    assert load.disk_kv_state.startswith("off: disk_kv_dir") and load.disk_tier is None


def test_another_models_blocks_are_refused_with_both_names(tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ("generate", "--prompt", "x", "--max-tokens", 1, *flags(directory))
    assert quire(*command, "--model", MODEL).returncode == 0
    assert quire(*command, "--model", MODEL).returncode == 0, "the same model again"
    renamed = tmp_path / "another name"
    shutil.copytree(MODEL, renamed)
    assert quire(*command, "--model", renamed).returncode == 0, "it is the weights that count"

    weights = renamed / "model-00002-of-00002.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    done = quire(*command, "--model", renamed)
    assert done.returncode != 0 and "holds KV blocks of another model or version" in done.stderr
    assert done.stderr.count("weights ") >= 2 and done.stderr.count(" by quire ") == 2, done.stderr

    done = quire(*command, "--model", MODEL, "--block-tokens", 32)
    assert "in blocks of 16; this server runs" in done.stderr and "in blocks of 32" in done.stderr
    done = quire(*command, "--model", MODEL, "--kv-cache-dtype", "bf16")
    assert "kv bf16 in blocks of 16" in done.stderr


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    command = ("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1, *flags(tmp_path))
    done = quire(*command, file_size=1 << 20)
    assert done.returncode == 1 and "RLIMIT_FSIZE (ulimit -f) allows 1048576 bytes a file" in done.stderr, done
    assert list(tmp_path.iterdir()) == []
    done = quire(*command, "--disk-kv-on-error", "ignore", file_size=1 << 20)
    assert done.returncode == 0, done.stderr


def test_another_instruction_sets_blocks_are_refused(tmp_path):
    command = ("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1, *flags(tmp_path))
    assert quire(*command, environment={"QUIRE_CPU_ISA": "plain"}).returncode == 0
    if quire(*command).returncode == 0:
        pytest.skip("this machine has no more than plain code")
    done = quire(*command)
    assert "on cpu (plain) by quire" in done.stderr, "its last bits are not what this machine computes"
