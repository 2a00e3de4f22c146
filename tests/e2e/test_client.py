"""The Python client against a real server: what its errors carry, and what becomes of what runs when it is closed."""

import asyncio
import copy
import importlib.util
import pickle
import socket
import threading
import time

import grpc
import pytest

from quire_client import AsyncClient, Client, QuireError
from quire_client.request import make_request

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


class Number:
    """An integer that is not Python's, as an array's elements are."""

    def __init__(self, value: int | float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and other.value == self.value

    def __index__(self) -> int:
        if not isinstance(self.value, int):
            raise TypeError(f"{self.value} is not a whole number")
        return self.value


class Array:
    """As much of an array as protobuf looks at."""

    def __init__(self, values: list) -> None:
        self.values = [Number(value) for value in values]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Number:
        return self.values[index]

    def __iter__(self):
        return iter(self.values)


def numpy_array(values: list):
    if importlib.util.find_spec("numpy") is None:
        pytest.skip("numpy is not there")
    import numpy

    return numpy.array(values)


ARRAYS = pytest.mark.parametrize("array", [Array, numpy_array])


@ARRAYS
def test_token_ids_may_be_any_integers(client, array):
    options = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    plain = client.generate([5, 6, 7], **options, allowed_token_ids=[300, 400], bad_words=[[400]]).result()
    other = client.generate(array([5, 6, 7]), **options, allowed_token_ids=array([300, 400]), bad_words=[array([400])]).result()
    assert other.prompt_token_ids == (5, 6, 7) and plain.outputs[0].token_ids == other.outputs[0].token_ids == [300] * 4
    assert client.detokenize(array([300, 400])) == client.detokenize([300, 400])


@ARRAYS
@pytest.mark.parametrize(("value", "kind"), [(1.5, TypeError), (2**40, ValueError)])
@pytest.mark.parametrize("name", ["allowed_token_ids", "forced_token_ids", "stop_token_ids", "bad_words"])
def test_what_is_no_token_id_is_an_error(array, value, kind, name):
    """protobuf drops it, of an array, and what follows: as allowed_token_ids that would be no rule at all."""
    ids = array([value])
    with pytest.raises(kind):
        make_request("Once", {name: [ids] if name == "bad_words" else ids})
    with pytest.raises(kind):
        make_request(ids, {})


CLOSED = "CANCELLED: this client is closed"


def running(address: str) -> int:
    with Client(address) as client:
        return client.load().sequences_running


def ends(address: str) -> bool:
    """Whether nothing runs soon: 4000 tokens take longer."""
    end = time.monotonic() + 2
    while running(address) and time.monotonic() < end:
        time.sleep(0.02)
    return running(address) == 0


def test_closing_ends_what_runs(server):
    with Client(server.address) as client:
        read, unread = client.generate("Once", **LONG), client.generate("Twice", **LONG)
        whole = client.generate("Once", max_tokens=4, ignore_eos=True)
        next(read)
        expected = whole.result()
    for stream in (read, unread, read):
        with pytest.raises(QuireError, match=CLOSED):
            stream.result()
    assert whole.result() is expected
    assert ends(server.address)


def test_closing_ends_what_runs_under_asyncio(server):
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            read, unread, cancelled = (client.generate("Once", **LONG) for _ in range(3))
            whole = client.generate("Once", max_tokens=4, ignore_eos=True)
            await anext(read)
            expected = await whole.result()
            cancelled.cancel()
        for stream in (read, unread, read):
            with pytest.raises(QuireError, match=CLOSED):
                await stream.result()
        with pytest.raises(QuireError, match="CANCELLED: cancelled by this client"):
            await cancelled.result()
        assert await whole.result() is expected
        assert await asyncio.to_thread(ends, server.address)

    asyncio.run(run())


def test_whoever_reads_while_another_closes_hears_of_it(server):
    client = Client(server.address)
    stream, heard = client.generate("Once", **LONG), []

    def read() -> None:
        try:
            stream.result()
        except QuireError as error:
            heard.append(str(error))

    next(stream)
    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.1)
    client.close()
    reader.join(5)
    assert heard == [CLOSED]

    async def run() -> None:
        client = AsyncClient(server.address)
        stream = client.generate("Once", **LONG)
        await anext(stream)
        reader = asyncio.create_task(stream.result())
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(QuireError, match=CLOSED):
            await reader

    asyncio.run(run())
    assert ends(server.address)


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


def test_whoever_waits_for_an_answer_while_another_closes_hears_of_it(mute):
    """And no task is cancelled that nobody has cancelled."""
    heard = []

    def call(ask) -> None:
        try:
            heard.append(ask())
        except QuireError as error:
            heard.append(str(error))

    client = Client(mute)
    threads = [threading.Thread(target=call, args=(ask,)) for ask in (client.model, client.is_ready, client.wait_ready)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    client.close()
    for thread in threads:
        thread.join(5)
    assert heard == [CLOSED] * 3

    async def run() -> list[object]:
        client = AsyncClient(mute)
        tasks = [asyncio.create_task(ask()) for ask in (client.model, client.is_ready, client.wait_ready)]
        await asyncio.sleep(0.3)
        await client.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(run())
    assert [str(answer) for answer in answers] == [CLOSED] * 3 and {type(answer) for answer in answers} == {QuireError}


def test_a_cancelled_task_that_waits_for_an_answer_is_a_cancelled_task(mute):
    async def run() -> None:
        client = AsyncClient(mute)
        task = asyncio.create_task(client.model())
        await asyncio.sleep(0.1)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_a_closed_client_says_so(server):
    def asks(client) -> list:
        return [
            client.model,
            client.load,
            client.is_ready,
            client.wait_ready,
            lambda: client.tokenize("a"),
            lambda: client.detokenize([5]),
            lambda: client.abort("a"),
            lambda: client.dump_kv("a", max_tokens=1),
        ]

    client = Client(server.address)
    assert client.is_ready()
    client.close()
    client.close()
    for ask in [*asks(client), lambda: client.generate("a")]:
        with pytest.raises(QuireError, match=CLOSED):
            ask()

    async def run() -> None:
        client = AsyncClient(server.address)
        assert await client.is_ready()
        await client.close()
        await client.close()
        for ask in asks(client):
            with pytest.raises(QuireError, match=CLOSED):
                await ask()
        with pytest.raises(QuireError, match=CLOSED):
            client.generate("a")

    asyncio.run(run())
