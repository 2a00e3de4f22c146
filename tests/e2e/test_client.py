"""The Python client against a real server: what its errors carry, and what becomes of what runs when it is closed."""

import asyncio
import copy
import pickle
import socket
import time

import grpc
import pytest

from quire_client import AsyncClient, Client, QuireError

LONG = {"max_tokens": 4000, "ignore_eos": True, "temperature": 0}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_is_the_same_on_the_other_side_of_a_process(client, copied):
    """multiprocessing pickles it: one that cannot be read back breaks the pool."""
    with pytest.raises(QuireError) as raised:
        client.generate("x", top_p=2).result()
    raised.value.add_note("request 7")
    made = QuireError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=1.5, quotas={"max_tenant_requests_per_minute": 6})
    for error in (raised.value, made):
        got = copied(error)
        assert type(got) is QuireError and str(got) == str(error)
        assert vars(got) == vars(error)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"top_p": 2}, grpc.StatusCode.INVALID_ARGUMENT),
        ({**LONG, "timeout_s": 0.2}, grpc.StatusCode.DEADLINE_EXCEEDED),  # in the client's words or the server's: who notices first
        ({**LONG, "deadline_ms": 200}, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_a_failed_generation_never_reads_as_a_whole_one(server, options, code):
    """However often it is asked for, in both clients."""
    with Client(server.address) as client:
        stream, got = client.generate("Once", **options), []
        for _ in range(3):
            with pytest.raises(QuireError) as raised:
                stream.result()
            got.append(raised.value)
    assert got[0].code is code and len({str(error) for error in got}) == 1

    async def run() -> list[QuireError]:
        got = []
        async with AsyncClient(server.address) as client:
            stream = client.generate("Once", **options)
            for _ in range(3):
                with pytest.raises(QuireError) as raised:
                    await stream.result()
                got.append(raised.value)
        return got

    got = asyncio.run(run())
    assert got[0].code is code and len({str(error) for error in got}) == 1


def test_a_cancelled_generation_never_reads_as_a_whole_one(server):
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.generate("Once", **LONG)
            await anext(stream)
            stream.cancel()
            for _ in range(3):
                with pytest.raises(QuireError, match="CANCELLED: cancelled by this client"):
                    await stream.result()
            stream = client.generate("Once", **LONG)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.result(), 0.2)
            for _ in range(3):
                with pytest.raises(QuireError, match="CANCELLED: the task that read it was cancelled"):
                    await stream.result()

    asyncio.run(run())


def test_a_whole_generation_may_be_asked_for_again(server):
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            async with client.generate("Once", max_tokens=4, ignore_eos=True) as stream:
                whole = await stream.result()
            assert await stream.result() is whole and whole.usage.completion_tokens == 4

    asyncio.run(run())


@pytest.fixture
def mute():
    """An address that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("within_s", [0, 0.3, 2.3])
def test_waiting_for_a_server_takes_the_time_given(mute, within_s):
    """One question may take 2 s, the whole no more than was said."""
    complaint = f"the server was not ready within {within_s} s"
    began = time.monotonic()
    with Client(mute) as client, pytest.raises(TimeoutError, match=complaint):
        client.wait_ready(within_s)
    assert within_s <= time.monotonic() - began < within_s + 0.5

    async def run() -> None:
        async with AsyncClient(mute) as client:
            with pytest.raises(TimeoutError, match=complaint):
                await client.wait_ready(within_s)

    began = time.monotonic()
    asyncio.run(run())
    assert within_s <= time.monotonic() - began < within_s + 0.5
