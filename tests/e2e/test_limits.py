"""What a server refuses to one tenant, and when its memory is nearly full: a real server, its flags from everywhere they may come."""

import json
import re
import threading
import time

import grpc
import pytest
from conftest import MODEL, Server, quire

from quire_client import Client, QuireError
from quire_client.wire import service_pb2, service_pb2_grpc

TOKENS = {"temperature": 0, "ignore_eos": True}


def refusal(client: Client, *arguments, **options) -> QuireError:
    with pytest.raises(QuireError) as refused:
        client.generate(*arguments, **TOKENS, **options).result()
    assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value
    return refused.value


def first_refusal(client: Client) -> QuireError:
    """Of small requests of tenant a, one after the other."""
    for _ in range(20):
        try:
            client.generate([5], max_tokens=1, tenant="a", **TOKENS).result()
        except QuireError as error:
            return error
    raise AssertionError("20 requests were taken, where 3 a minute may be")


def test_a_tenant_is_limited_as_flag_file_and_environment_say(tmp_path, monkeypatch):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_tenant_requests_per_minute": 3}))
    monkeypatch.setenv("QUIRE_MAX_TENANT_TOKENS_PER_MINUTE", "600")
    server = Server("--config", config, "--max-tenant-parallel-requests", 1)
    with Client(server.address) as client:
        never = refusal(client, [5] * 10, max_tokens=591, tenant="a")
        assert never.quotas == {"max_tenant_tokens_per_minute": 600} and never.retry_after_s is None
        assert client.generate([5] * 10, max_tokens=40, tenant="a", **TOKENS).result().usage.completion_tokens == 40
        more = refusal(client, [5] * 10, max_tokens=590, tenant="a")
        assert more.quotas == {"max_tenant_tokens_per_minute": 600} and 0 < more.retry_after_s <= 5, "50 at 10 a second"
        running = client.generate([5] * 10, max_tokens=500, tenant="a", **TOKENS)
        next(running)
        at_once = refusal(client, [5], max_tokens=1, tenant="a")
        assert at_once.quotas.get("max_tenant_parallel_requests") == 1 and "tenant:a" in at_once.message
        running.cancel()
        assert client.generate([5], max_tokens=1, tenant="b", **TOKENS).result().usage.completion_tokens == 1
        end = time.monotonic() + 20
        while "max_tenant_parallel_requests" in (many := first_refusal(client)).quotas and time.monotonic() < end:
            time.sleep(0.05)  # what was cancelled ends within a step of the engine's
        assert many.quotas == {"max_tenant_requests_per_minute": 3} and 0 < many.retry_after_s <= 20
        assert "clientip:127.0.0.1" in refusal(client, [5] * 600, max_tokens=1).message, "who names no tenant"
        totals = client.load().totals
        assert totals["refused_tenant_requests_total"] >= 1 and totals["refused_tenant_tokens_total"] >= 3
    assert server.stop() == 0


def load(server: Server) -> service_pb2.GetLoadResponse:
    with grpc.insecure_channel(server.address) as channel:
        return service_pb2_grpc.GenerationServiceStub(channel).GetLoad(service_pb2.GetLoadRequest())


CACHE = ("--kv-cache-bytes", 16 << 20)


def test_requests_are_shed_while_memory_is_nearly_full_and_taken_again_after():
    server = Server(*CACHE)
    idle = load(server)
    assert 0 < idle.host_memory_bytes < idle.max_host_memory_bytes and idle.host_memory_pressure == "", "the machine's, if none is said"
    assert server.stop() == 0
    server = Server(*CACHE, "--max-step-tokens", 256, "--kv-policies-allowed", "window", "--max-host-memory-bytes", idle.host_memory_bytes + (16 << 20) + (80 << 20))
    with Client(server.address) as client, Client(server.address) as reader:
        assert client.generate([5], max_tokens=1).result()
        # 1.4 MB, which take some 170 MB while they are read: between numbers a text is not cut.
        text = "7 * 40 = 280, 8 * 40 = 320; " * 50_000
        reading = threading.Thread(target=lambda: reader.tokenize(text))
        reading.start()
        shed = None
        while shed is None and reading.is_alive():
            try:
                client.generate([5], max_tokens=1).result()
            except QuireError as error:
                shed = error
        assert shed and shed.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_host_memory_bytes" in shed.message and shed.retry_after_s == 1 and not shed.quotas
        reading.join()
        end = time.monotonic() + 20
        while load(server).host_memory_pressure != "" and time.monotonic() < end:
            time.sleep(0.05)
        assert client.generate([5], max_tokens=1).result().usage.completion_tokens == 1
        assert client.load().totals["refused_host_memory_total"] >= 1
    assert server.stop() == 0
    assert any("host_memory_recovered" in line for line in server.log), "".join(server.log)


def test_a_ceiling_that_is_taken_at_the_start_holds_what_was_planned():
    """Workspace and cache are touched long after the start, and stay: a ceiling below them would refuse every request from then on."""
    done = quire("serve", "--model", MODEL, "--port", 0, "--kv-cache-bytes", 64 << 20, "--max-host-memory-bytes", 100_000_000)
    assert done.returncode == 1 and "READY" not in done.stdout
    held, more = map(int, re.search(r"holds (\d+) bytes .* may take (\d+) more", done.stderr).groups())
    server = Server("--kv-cache-bytes", 64 << 20, "--max-host-memory-bytes", held + more + (32 << 20))
    with Client(server.address) as client:
        for _ in range(3):
            for policy in ("", "h2o:heavy=1000,recent=1000"):
                assert client.generate([5 + i % 4000 for i in range(3000)], max_tokens=4, kv_policy=policy).result().text
        time.sleep(0.6)  # two looks
        assert load(server).host_memory_pressure == "" and load(server).host_memory_bytes > 100_000_000
    assert server.stop() == 0


def test_a_ceiling_that_the_model_fills_is_told_at_the_start():
    done = quire("serve", "--model", MODEL, "--port", 0, *CACHE, "--max-host-memory-bytes", 1 << 20)
    assert done.returncode == 1 and "--max-host-memory-bytes is 1048576" in done.stderr and "READY" not in done.stdout
    for flag, value in (("--max-host-memory-bytes", -2), ("--max-tenant-tokens-per-minute", 10**9 + 1), ("--max-tenant-parallel-requests", -1)):
        done = quire("serve", "--model", MODEL, "--port", 0, flag, value)
        assert done.returncode == 1 and f"{flag} is {value}; it must be from" in done.stderr, done.stderr
