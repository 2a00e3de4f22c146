"""A real server with the demo model and its Python client. What an operator does to it: test_operate.py."""

import asyncio
import json
import socket
import subprocess
import sys
import threading

import grpc
import pytest
from conftest import ROOT, Server, eventually, model_with_nan_weights, quire

from quire_client import AsyncClient, Client, QuireError


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
        pytest.param([7] * 20_000, {}, "token_ids", id="long list"),
        pytest.param("a " * 20_000, {}, "text", id="long text"),
        ("", {"add_special_tokens": False}, "text"),
        ("a", {"max_tokens": -1}, "sampling.max_tokens"),
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
