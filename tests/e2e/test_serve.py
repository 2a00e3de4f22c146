"""A real server with the demo model, its Python client, and what an operator does to it."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from conftest import MODEL, ROOT, Server, model_with_nan_weights, quire

from quire_client import AsyncClient, Client, QuireError, Tls


def eventually(holds, within_s: float = 10) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return bool(holds())


def idle(client: Client) -> bool:
    load = client.load()
    return load.sequences_running == 0 and load.requests_waiting == 0 and load.blocks_held == 0


def test_ready_line_names_address_and_model(server):
    assert server.ready_line == f"READY grpc={server.address} model=demo\n"
    assert not server.address.endswith(":0")


def test_a_stream_is_its_collected_text(client):
    events = list(client.generate("Once upon a time", max_tokens=16, temperature=0, ignore_eos=True))
    assert len(events) > 4, "tokens come as they are made"
    whole = client.generate("Once upon a time", max_tokens=16, temperature=0, ignore_eos=True, stream=False).result()
    assert "".join(e.text for e in events) == whole.text
    assert [i for e in events for i in e.token_ids] == whole.outputs[0].token_ids
    assert events[-1].usage.completion_tokens == 16 and events[-1].finish_reason == "length"


def test_the_wire_and_the_command_give_the_same_tokens(client, tmp_path):
    options = {"max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 11, "repetition_penalty": 1.1}
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "The cat", **options}))
    done = quire("generate", "--model", ROOT / "models" / "demo", "--input", tmp_path / "in.jsonl", "--output", "jsonl")
    assert client.generate("The cat", **options).result().outputs[0].token_ids == json.loads(done.stdout)["outputs"][0]["token_ids"]


def test_a_repeated_prompt_is_found_in_the_cache(client):
    prompt = [1 + i % 300 for i in range(200)]
    first = client.generate(prompt, max_tokens=4, temperature=0, cache_salt="repeat").result()
    again = client.generate(prompt, max_tokens=4, temperature=0, cache_salt="repeat").result()
    other = client.generate(prompt, max_tokens=4, temperature=0, cache_salt="another tenant").result()
    assert first.usage.cached_tokens == 0 and again.usage.cached_tokens >= 192 and other.usage.cached_tokens == 0
    assert first.outputs[0].token_ids == again.outputs[0].token_ids == other.outputs[0].token_ids


def test_a_cancelled_stream_gives_its_blocks_back(client):
    assert eventually(lambda: idle(client))
    with client.generate("Once upon a time", max_tokens=4000, ignore_eos=True) as generation:
        next(generation)
        assert client.load().sequences_running == 1
    assert eventually(lambda: idle(client))


def test_abort_takes_names_and_says_so(server, client):
    async def asynchronous(names):
        async with AsyncClient(server.address) as other:
            return await other.abort(names)

    for wrong, kind in ((["a"], "list"), (5, "int"), (None, "NoneType")):
        for call in (client.abort, lambda names: asyncio.run(asynchronous(names))):
            with pytest.raises(TypeError, match=rf'abort takes names, abort\("a", "b"\); {kind} is none'):
                call(wrong)


def test_abort_ends_a_stream_by_name(client):
    with client.generate("Once", max_tokens=4000, ignore_eos=True, request_id="to be ended") as generation:
        next(generation)
        assert client.abort("to be ended", "unknown", "to be ended") == ["to be ended"]
        with pytest.raises(QuireError) as caught:
            generation.result()
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert eventually(lambda: idle(client))


@pytest.mark.parametrize("options", [{"deadline_ms": 150}, {"timeout_s": 0.15}])
def test_a_deadline_ends_a_stream(client, options):
    with pytest.raises(QuireError) as caught:
        client.generate("Once", max_tokens=4000, ignore_eos=True, **options).result()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: idle(client))


def test_a_killed_client_gives_its_blocks_back(client, server):
    program = f"""
import sys; sys.path.insert(0, {str(ROOT / "clients" / "python" / "src")!r})
from quire_client import Client
stream = Client({server.address!r}).generate("Once", max_tokens=4000, ignore_eos=True)
next(stream); print("streaming", flush=True)
for _ in stream: pass
"""
    victim = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert victim.stdout.readline() == "streaming\n"
    victim.kill()
    victim.wait()
    assert eventually(lambda: idle(client))


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("a", {"top_p": 2.0}, "sampling.top_p"),
        ("a", {"temperature": float("nan")}, "sampling.temperature"),
        ("a", {"n": 99}, "sampling.n"),
        ("a", {"stop_token_ids": [4096]}, "sampling.stop_token_ids"),
        ([4096], {}, "token_ids"),
        ([], {}, "token_ids"),
        ("a", {"tenant": "x" * 257}, "tenant"),
        ("a", {"kv_policy": "nonsense:size=1"}, "kv_policy"),
    ],
)
def test_a_bad_field_is_named(client, prompt, options, field):
    with pytest.raises(QuireError) as caught:
        client.generate(prompt, **options).result()
    assert (caught.value.code, caught.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, field), caught.value
    assert client.generate("a", max_tokens=1).result().usage.completion_tokens == 1, "the server goes on"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"top_pp": 1}, TypeError),
        ({"top_k": "a"}, TypeError),
        ({"top_k": 1.5}, TypeError),
        ({"bad_words": [5]}, TypeError),
        ({"top_k": 2**40}, ValueError),
        ({"seed": -1}, ValueError),
        ({"stop": "\ud800"}, ValueError),
        ({"kv_retention": {"ttl": 1}}, ValueError),
    ],
)
def test_what_cannot_be_sent_is_told_before_it_is_sent(client, options, error):
    with pytest.raises(error):
        client.generate("a", **options)
    with pytest.raises(error):
        client.dump_kv("a", **options)


def test_messages_for_a_model_without_a_template_are_the_field_at_fault(client):
    with pytest.raises(QuireError) as caught:
        client.generate([{"role": "user", "content": "a"}]).result()
    assert (caught.value.code, caught.value.field) == (grpc.StatusCode.FAILED_PRECONDITION, "messages"), caught.value


def test_dump_kv_has_a_deadline_of_its_own(server):
    with Client(server.address, timeout_s=0.001) as hasty:
        assert hasty.dump_kv([5, 6], max_tokens=1).outputs[0].kv_dump, "the client's own is of the other calls"
        with pytest.raises(QuireError) as caught:
            hasty.dump_kv([5, 6], max_tokens=4000, ignore_eos=True, timeout_s=0.1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_prompt_over_the_context_is_refused_with_both_numbers(client):
    with pytest.raises(QuireError, match=r"5000.*4096|4096.*5000"):
        client.generate([1] * 5000).result()


def test_a_default_max_tokens_fits_the_context_and_one_asked_for_does_not(client):
    assert len(client.generate([1] * 4090, ignore_eos=True).result().outputs[0].token_ids) == 6
    with pytest.raises(QuireError, match="max_tokens may be at most 6") as caught:
        client.generate([1] * 4090, max_tokens=16).result()
    assert caught.value.field == "sampling.max_tokens"


def test_tokenize_detokenize_model_and_load(client):
    ids = client.tokenize("Once upon a time")
    assert client.detokenize(ids) == "Once upon a time"
    assert 0 not in client.tokenize("<|endoftext|>", add_special_tokens=False), "a user's text cannot forge a role"
    model = client.model()
    assert (model.name, model.vocab_size, model.max_context_tokens, model.has_tokenizer) == ("demo", 4096, 4096, True)
    assert (model.limits.max_n, model.limits.max_logprobs, model.limits.max_stop_bytes) == (8, 20, 256)
    load = client.load()
    assert load.blocks_total == load.blocks_free + load.blocks_held + load.blocks_cached
    assert load.swap_blocks_held == load.swap_blocks_total == 0 and load.totals["failed_without_logits_total"] == 0
    assert 0 < load.host_memory_bytes < load.max_host_memory_bytes and load.host_memory_pressure == "" and load.tenants_tracked == 0
    assert load.texts_waiting == 0 == load.totals["refused_texts_total"]


def test_dump_kv_names_every_position_without_a_policy(client):
    completion = client.dump_kv([5, 6, 7], max_tokens=4, temperature=0, ignore_eos=True)
    [output] = completion.outputs
    assert len(output.kv_dump) == client.model().num_layers
    assert all(list(head) == [0, 1, 2, 3, 4, 5] for layer in output.kv_dump for head in layer), "the last token is never read"


def test_logprobs_of_prompt_and_output(client):
    completion = client.generate("Once upon a time", max_tokens=3, temperature=0, logprobs=2, prompt_logprobs=1).result()
    assert completion.prompt_logprobs[0].logprob is None and completion.prompt_logprobs[1].logprob < 0
    assert len(completion.prompt_logprobs) == len(completion.prompt_token_ids)
    assert [e.token_id for e in completion.outputs[0].logprobs] == completion.outputs[0].token_ids


def test_256_streams_at_once_are_all_served(server):
    async def run() -> list[int]:
        async with AsyncClient(server.address) as client:
            jobs = [client.generate(f"Story {i}", max_tokens=8, temperature=0, ignore_eos=True).result() for i in range(256)]
            return [len(done.outputs[0].token_ids) for done in await asyncio.gather(*jobs)]

    assert asyncio.run(run()) == [8] * 256


def test_asyncio_streams_and_cancels(server):
    async def run() -> bool:
        async with AsyncClient(server.address) as client:
            await client.wait_ready(10)
            async with client.generate("Once", max_tokens=4000, ignore_eos=True) as stream:
                async for _ in stream:
                    break
            for _ in range(200):
                if (await client.load()).sequences_running == 0:
                    return True
                await asyncio.sleep(0.02)
            return False

    assert asyncio.run(run())


def test_leaving_the_loop_over_an_asyncio_generation_ends_it(server):
    async def run() -> bool:
        async with AsyncClient(server.address) as client:
            async for _ in client.generate("Once", max_tokens=4000, ignore_eos=True):
                break
            for _ in range(100):
                if (await client.load()).sequences_running == 0:
                    return True
                await asyncio.sleep(0.01)
            return False

    assert asyncio.run(run()), "4000 tokens take longer than that"


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (b"Once", "bytes; decode it"),
        ([{"role": "user"}], "message 0 of the prompt has no text 'content'"),
        ([{"role": "user", "content": None}], "message 0 of the prompt has no text 'content'"),
        ([1, "a"], "a prompt is a string, a list of token ids"),
        ({"role": "user", "content": "a"}, "a prompt is a string, a list of token ids"),
        (5, "a prompt is a string, a list of token ids"),
    ],
)
def test_what_is_no_prompt_is_a_type_error(client, prompt, complaint):
    with pytest.raises(TypeError, match=complaint):
        client.generate(prompt)


def test_an_iterator_of_ids_is_a_prompt(client):
    by_list = client.generate([5, 6, 7], max_tokens=4, temperature=0).result()
    by_iterator = client.generate(iter([5, 6, 7]), max_tokens=4, temperature=0).result()
    assert by_iterator.prompt_token_ids == (5, 6, 7) and by_iterator.text == by_list.text


def test_a_call_that_is_not_answered_ends_by_the_clients_timeout():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2) as client, pytest.raises(QuireError) as caught:
            client.model()
    assert caught.value.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


def test_no_token_outside_the_allowed_ids_is_ever_chosen(client):
    """Where another rule excludes those too the request ends, whatever else could be chosen."""
    rules = [{"no_repeat_ngram": 1}, {"bad_words": [[300], [400]]}, {"no_repeat_ngram": 1, "temperature": 1.0, "seed": 1}]
    for rule in rules:
        stream = client.generate([1, 2], **{"max_tokens": 6, "temperature": 0, "ignore_eos": True, "allowed_token_ids": [300, 400], **rule})
        got = []
        with pytest.raises(QuireError, match=r"allowed_token_ids \(2 ids\), " + next(iter(rule))) as caught:
            for event in stream:
                got += event.token_ids
        assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT and caught.value.field == "sampling.allowed_token_ids"
        assert set(got) <= {300, 400} and len(got) == (0 if "bad_words" in rule else 2)
    with pytest.raises(QuireError, match="allowed_token_ids.*min_tokens 3"):
        client.generate([1, 2], max_tokens=6, min_tokens=3, allowed_token_ids=[0]).result()
    with pytest.raises(QuireError, match="beam search found"):
        client.generate([1, 2], max_tokens=6, beam_width=2, no_repeat_ngram=1, allowed_token_ids=[300, 400]).result()
    assert eventually(lambda: idle(client))


def test_a_row_without_logits_fails_its_request_and_is_counted(tmp_path):
    server = Server(model=model_with_nan_weights(tmp_path / "nan"))
    with Client(server.address) as client:
        for options in ({}, {"n": 3}, {"beam_width": 2}, {"logprobs": 1, "temperature": 0}):
            with pytest.raises(QuireError, match="no finite logit for output token 1") as caught:
                client.generate([1, 2], max_tokens=4, **options).result()
            assert caught.value.code == grpc.StatusCode.INTERNAL
        load = client.load()
        assert load.totals["failed_without_logits_total"] == 4 == load.totals["requests_failed_total"]
        assert eventually(lambda: idle(client))
    assert server.stop() == 0


def test_cancel_ends_a_generation_with_the_same_error_in_both_clients(server):
    with Client(server.address) as client:
        stream = client.generate("Once", max_tokens=4000, ignore_eos=True)
        next(stream)
        stream.cancel()
        with pytest.raises(QuireError) as raised:
            stream.result()
        assert raised.value.code == grpc.StatusCode.CANCELLED

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.generate("Once", max_tokens=4000, ignore_eos=True)
            await anext(stream)
            stream.cancel()
            with pytest.raises(QuireError) as raised:
                await stream.result()
            assert raised.value.code == grpc.StatusCode.CANCELLED

    asyncio.run(run())


def test_a_cancelled_task_that_waits_for_a_generation_is_a_cancelled_task(server):
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.generate("Once", max_tokens=4000, ignore_eos=True)
            task = asyncio.create_task(stream.result())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_reflection_lists_and_describes_the_service(server):
    with grpc.insecure_channel(server.address) as channel:
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        [services] = list(reflect(iter([b"\x3a\x01*"])))  # ServerReflectionRequest{list_services: "*"}
        [file] = list(reflect(iter([b"\x22\x1aquire.v1.GenerationService"])))  # {file_containing_symbol: ..}
    assert b"quire.v1.GenerationService" in services and b"grpc.health.v1.Health" in services
    assert b"quire/v1/service.proto" in file


@pytest.mark.parametrize(("flags", "code"), [((), grpc.StatusCode.UNIMPLEMENTED), (("--reflection",), grpc.StatusCode.OK)])
def test_reflection_on_a_public_address_is_asked_for(flags, code):
    server = Server("--host", "0.0.0.0", "--behind-proxy", *flags)
    with grpc.insecure_channel(server.address.replace("0.0.0.0", "127.0.0.1")) as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x01*"]))
        try:
            list(call)
        except grpc.RpcError:
            pass
        assert call.code() is code
    assert server.stop() == 0


def test_healthcheck_command_knows_ready_from_absent(server):
    assert quire("healthcheck", "--address", server.address).stdout == "SERVING\n"
    assert quire("healthcheck", "--address", server.address, "--service", "").returncode == 0
    assert quire("healthcheck", "--address", server.address, "--service", "no.such.Service").returncode == 1


def test_sigterm_lets_a_stream_finish():
    server = Server()
    with Client(server.address) as client:
        stream = client.generate("Once", max_tokens=400, temperature=0, ignore_eos=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(QuireError) as caught:
            assert eventually(lambda: not client.is_ready(), 5)
            client.generate("a", max_tokens=1).result()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert stream.result().usage.completion_tokens == 400
    assert server.wait() == 0


def test_a_drain_has_an_end():
    server = Server("--drain-timeout-ms", 300)
    with Client(server.address) as client:
        streams = [client.generate(f"Story {i}", max_tokens=4000, ignore_eos=True) for i in range(8)]
        for stream in streams:
            next(stream)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            with pytest.raises(QuireError):
                stream.result()
    assert server.wait() == 0
    assert time.monotonic() - start < 5


def test_a_request_leaves_one_line_with_ids_and_no_prompt():
    server = Server("--log-format", "json")
    with Client(server.address) as client:
        client.generate("A very secret prompt", max_tokens=2, ignore_eos=True, request_id="watched").result()
        client.dump_kv("A very secret prompt", max_tokens=2, ignore_eos=True, request_id="dumped")
        with client.generate("A very secret prompt", max_tokens=3000, ignore_eos=True, request_id="dropped") as stream:
            next(stream)
        for bad in ({"top_p": 2.0}, {"max_tokens": 5000}):  # refused by the mapping, and by the engine
            with pytest.raises(QuireError):
                client.generate("A very secret prompt", request_id="refused", **bad).result()
    assert server.stop() == 0
    assert "secret" not in "".join(server.log)
    lines = [json.loads(line) for line in server.log]
    [watched] = [line for line in lines if "watched" in line.values()]
    assert (watched["event"], watched["finish"], watched["completion_tokens"]) == ("call_end", "length", 2)
    assert 0 <= watched["queued_ms"] <= watched["first_token_ms"] <= watched["total_ms"]
    assert [line["event"] for line in lines if "dumped" in line.values()] == ["call_end"]
    refused = [line for line in lines if "refused" in line.values()]
    assert [(line["event"], line["code"]) for line in refused] == [("call_refused", "INVALID_ARGUMENT")] * 2
    [dropped] = [line for line in lines if "dropped" in line.values()]
    assert dropped["code"] == "CANCELLED" and dropped["finish"] == "cancelled"
    assert 0 <= dropped["queued_ms"] <= dropped["first_token_ms"] and dropped["completion_tokens"] > 0, "it ran before it was cancelled"
    assert all("5000" in line["message"] or "top_p" in line["message"] for line in refused)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make a certificate with")
def test_what_a_template_raises_reaches_the_client_and_not_the_log(tmp_path):
    for file in MODEL.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('Unknown content: ' + messages[0].content) }}")
    running = Server("--log-level", "debug", model=tmp_path)
    secret = "my secret " * 2000
    with Client(running.address) as client:
        with pytest.raises(QuireError) as refused:
            client.generate([{"role": "user", "content": secret}], max_tokens=1).result()
        with pytest.raises(QuireError) as role:
            client.generate([{"role": "x" * 20_000, "content": "a"}], max_tokens=1).result()
    assert running.stop() == 0
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT and refused.value.field == "messages"
    assert refused.value.message.startswith("chat template: Unknown content: my secret ") and len(refused.value.message) < 300
    assert role.value.code == grpc.StatusCode.INVALID_ARGUMENT and "role has 20000 bytes; at most 256" in role.value.message
    log = "".join(running.log)
    assert "code=INVALID_ARGUMENT" in log and "secret" not in log, log


def test_tls_with_and_without_the_right_certificate(tmp_path):
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path)

    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    for name in ("server", "client", "stranger"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", *subject)
    server = Server("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key", "--tls-client-ca", tmp_path / "client.pem")

    def works(root: str, identity: str | None) -> bool:
        read = lambda name: (tmp_path / name).read_bytes()  # noqa: E731
        tls = Tls(read(f"{root}.pem"), read(f"{identity}.key") if identity else None, read(f"{identity}.pem") if identity else None)
        with Client(server.address, tls=tls) as client:
            try:
                return client.generate("a", max_tokens=1, timeout_s=10).result().usage.completion_tokens == 1
            except QuireError:
                return False

    assert works("server", "client")
    assert not works("server", "stranger") and not works("server", None), "the server asks for a certificate of its authority"
    assert not works("stranger", "client"), "the client checks the server's"

    def healthcheck(*flags: str) -> subprocess.CompletedProcess:
        return quire("healthcheck", "--address", server.address, "--tls-ca", tmp_path / "server.pem", *flags)

    shown = healthcheck("--tls-cert", tmp_path / "client.pem", "--tls-key", tmp_path / "client.key")
    assert (shown.returncode, shown.stdout) == (0, "SERVING\n"), shown.stderr
    assert healthcheck().returncode == 1, "the server asks for a certificate"
    assert "--tls-key is missing" in healthcheck("--tls-cert", tmp_path / "client.pem").stderr
    assert server.stop() == 0


def test_healthcheck_names_the_tls_file_at_fault(tmp_path):
    """gRPC would say "empty address list" of each."""
    subprocess.run(["openssl", *"req -x509 -newkey rsa:2048 -nodes -keyout a.key -out a.pem -days 2 -subj /CN=localhost".split()], check=True, capture_output=True, cwd=tmp_path)
    (tmp_path / "none.pem").write_text("no certificate\n")
    good, key, bad, missing = (tmp_path / name for name in ("a.pem", "a.key", "none.pem", "missing.pem"))
    authority = "a PEM file of the authority that signed the server's certificate is wanted"
    for flags, said in (
        (["--tls-ca", bad], f"--tls-ca {bad}: it does not begin with a PEM certificate (-----BEGIN CERTIFICATE-----); {authority}"),
        (["--tls-ca", missing], f"--tls-ca {missing}: no such file; {authority}"),
        (["--tls-ca", good, "--tls-cert", key, "--tls-key", key], f"--tls-cert {key}: it does not begin with a PEM certificate (-----BEGIN CERTIFICATE-----); a PEM file of the client's"),
        (["--tls-ca", good, "--tls-cert", good, "--tls-key", bad], f"--tls-key {bad}: it holds no PEM private key"),
        (["--tls-ca", good, "--tls-key", key], "--tls-cert and --tls-key go together; --tls-cert is missing"),
        (["--tls-cert", good, "--tls-key", key], "--tls-cert and --tls-key need --tls-ca"),
    ):
        done = quire("healthcheck", "--address", "127.0.0.1:1", *flags)
        assert done.returncode == 1 and done.stderr.startswith(f"quire: {said}"), done.stderr


def test_many_threads_may_share_a_client(client):
    results: list[str] = []

    def work() -> None:
        results.append(client.generate("Once upon a time", max_tokens=6, temperature=0).result().text)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16 and len(set(results)) == 1, "a greedy answer does not depend on its neighbours"
