"""The client for asyncio."""

from __future__ import annotations

import asyncio
import copy
import time
import weakref
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Unpack

import grpc

from . import channel as wiring
from .errors import QuireError, closed
from .request import Ids, Prompt, RequestOptions, check_request_ids, ids_of, make_request
from .types import Completion, Event, Load, Model, event_from_wire, load_from_wire, model_from_wire
from .wire import service_pb2, service_pb2_grpc


def _is_cancelled() -> bool:
    """Whether the task that runs is to be cancelled. grpc.aio raises CancelledError for a cancelled call as for a cancelled task; only the
    second is the caller's to see as such."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncGeneration(AsyncIterator[Event]):
    """A running request: `async for` its events, or `await result()` for the whole. Leaving its `async with` cancels it, and so
    does dropping it before its end (a `break` out of the loop that holds it)."""

    def __init__(self, call: Any):
        self._call = call
        self._messages = call.__aiter__()
        self._completion = Completion()
        self._failure: QuireError | None = None  # why it did not end of itself
        self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> Event:
        try:
            event = event_from_wire(await self._messages.__anext__())
        except StopAsyncIteration:
            if self._failure is None:
                raise
            # The iterator of grpc.aio raises once, then it ends as if all were there.
            raise copy.copy(self._failure) from None
        except grpc.RpcError as error:
            self._failure = QuireError.from_rpc(error)
            raise copy.copy(self._failure) from None
        except asyncio.CancelledError:
            if self._failure is None or _is_cancelled():
                self._failure = self._failure or QuireError(grpc.StatusCode.CANCELLED, "the task that read it was cancelled")
                raise
            raise copy.copy(self._failure) from None
        self._completion.add(event)
        return event

    async def result(self) -> Completion:
        """Waits for the end; what was iterated before is in it too. Raises QuireError where the request did not end of itself."""
        async for _ in self:
            pass
        return self._completion

    def cancel(self) -> None:
        """Ends the request; its cache blocks are free within one step of the server."""
        self._end(QuireError(grpc.StatusCode.CANCELLED, "cancelled by this client"))

    def _end(self, why: QuireError) -> None:
        if self._call.cancel():
            self._failure = why

    def __del__(self) -> None:
        # Nobody can read it any more, as after a `break` out of its `async for`. Any thread may collect garbage.
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_closed() and not self._call.done():
            loop.call_soon_threadsafe(self._call.cancel)

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()


class AsyncClient:
    """As Client, for one event loop: make it inside the loop."""

    def __init__(self, address: str = "127.0.0.1:50051", *, tls: wiring.Tls | None = None, timeout_s: float | None = 60):
        options = list(wiring.CHANNEL_OPTIONS)
        self._timeout_s = timeout_s
        self._is_closed = False
        self._generations: weakref.WeakSet[AsyncGeneration] = weakref.WeakSet()
        self._channel = (
            grpc.aio.secure_channel(address, tls.credentials(), options) if tls else grpc.aio.insecure_channel(address, options)
        )
        self._stub = service_pb2_grpc.GenerationServiceStub(self._channel)
        self._health = self._channel.unary_unary(wiring.HEALTH_METHOD)

    async def close(self) -> None:
        """Ends the calls that run: whoever waits for one gets a QuireError, as does who makes another."""
        self._is_closed = True
        for generation in list(self._generations):  # closing the channel leaves them running
            generation._end(closed())
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def generate(self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[RequestOptions]) -> AsyncGeneration:
        """Continues a prompt. timeout_s is the call's deadline: past it the server drops the request too. Raises TypeError and ValueError
        for what cannot be sent at all (make_request); what the server refuses is a QuireError, as the first event is read."""
        request = make_request(prompt, options)
        if self._is_closed:
            raise closed()
        generation = AsyncGeneration(self._stub.Generate(request, timeout=timeout_s))
        self._generations.add(generation)
        return generation

    async def dump_kv(self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[RequestOptions]) -> Completion:
        """Runs a request to its end and reports the cache positions each continuation still saw (outputs[i].kv_dump). timeout_s as of
        generate."""
        options["dump_kv"] = True
        options["stream"] = False
        return await self.generate(prompt, timeout_s=timeout_s, **options).result()

    async def tokenize(self, text: str, *, add_special_tokens: bool = True, special_as_text: bool = True) -> list[int]:
        """Token ids of a text. add_special_tokens: with what the tokenizer puts around it (BOS); special_as_text: special tokens that
        stand in it are plain text. Raises QuireError, as every call here does."""
        request = service_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens, special_as_text=special_as_text)
        return list((await self._unary(self._stub.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Ids, *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises QuireError: an id outside the vocabulary, a model without a tokenizer."""
        request = service_pb2.DetokenizeRequest(token_ids=ids_of(token_ids), skip_special_tokens=skip_special_tokens)
        return (await self._unary(self._stub.Detokenize, request)).text

    async def model(self) -> Model:
        """What is served and within which limits. Raises QuireError."""
        return model_from_wire(await self._unary(self._stub.GetModel, service_pb2.GetModelRequest()))

    async def load(self) -> Load:
        """The server's counters at this moment. Raises QuireError."""
        return load_from_wire(await self._unary(self._stub.GetLoad, service_pb2.GetLoadRequest()))

    async def abort(self, *request_ids: str) -> list[str]:
        """Ends requests by name, abort("a", "b"); returns those that were running."""
        check_request_ids(request_ids)
        return list((await self._unary(self._stub.Abort, service_pb2.AbortRequest(request_ids=request_ids))).aborted_request_ids)

    async def is_ready(self) -> bool:
        """Whether the server answers, within 2 s, and takes requests. Raises QuireError where this client is closed."""
        return await self._is_ready(wiring.HEALTH_S)

    async def wait_ready(self, timeout_s: float = 60) -> None:
        """Raises TimeoutError, and QuireError where this client is closed."""
        end = time.monotonic() + timeout_s
        while (left_s := end - time.monotonic()) > 0:
            if await self._is_ready(min(left_s, wiring.HEALTH_S)):
                return
            await asyncio.sleep(max(0, min(0.05, end - time.monotonic())))
        raise TimeoutError(f"the server was not ready within {timeout_s} s")

    async def _is_ready(self, within_s: float) -> bool:
        try:
            return wiring.is_serving(await self._answer(self._health, wiring.health_request(wiring.SERVICE), within_s))
        except QuireError:
            if self._is_closed:
                raise
            return False

    async def _unary(self, method: Any, request: Any) -> Any:
        return await self._answer(method, request, self._timeout_s)

    async def _answer(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        if self._is_closed:
            raise closed()
        try:
            return await method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise QuireError.from_rpc(error) from None
        except asyncio.CancelledError:
            if not self._is_closed or _is_cancelled():
                raise
            raise closed() from None
