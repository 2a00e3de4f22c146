"""The client for plain code. One Client may be used from any number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Unpack

import grpc

from . import channel as wiring
from .errors import QuireError, closed
from .request import Ids, Prompt, RequestOptions, check_request_ids, ids_of, make_request
from .types import Completion, Event, Load, Model, event_from_wire, load_from_wire, model_from_wire
from .wire import service_pb2, service_pb2_grpc


def _failure(error: grpc.RpcError, is_closed: threading.Event) -> QuireError:
    if is_closed.is_set() and error.code() is grpc.StatusCode.CANCELLED:
        return closed()
    return QuireError.from_rpc(error)


class Generation(Iterator[Event]):
    """A running request: iterate for its events as they come, or take result() for the whole. Leaving its `with` cancels it."""

    def __init__(self, call: Any, is_closed: threading.Event):
        self._call = call
        self._is_closed = is_closed  # the client
        self._completion = Completion()

    def __next__(self) -> Event:
        try:
            event = event_from_wire(next(self._call))
        except grpc.RpcError as error:
            raise _failure(error, self._is_closed) from None
        self._completion.add(event)
        return event

    def result(self) -> Completion:
        """Waits for the end; what was iterated before is in it too. Raises QuireError where the request did not end of itself."""
        for _ in self:
            pass
        return self._completion

    def cancel(self) -> None:
        """Ends the request; its cache blocks are free within one step of the server."""
        self._call.cancel()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()


class Client:
    """A connection to one server. address: "HOST:PORT" or "unix:PATH"; tls: None = plaintext, for loopback.

    timeout_s: of each call but generate and dump_kv, which have their own; None = no limit."""

    def __init__(self, address: str = "127.0.0.1:50051", *, tls: wiring.Tls | None = None, timeout_s: float | None = 60):
        options = list(wiring.CHANNEL_OPTIONS)
        self._timeout_s = timeout_s
        self._is_closed = threading.Event()
        self._channel = (
            grpc.secure_channel(address, tls.credentials(), options) if tls else grpc.insecure_channel(address, options)
        )
        self._stub = service_pb2_grpc.GenerationServiceStub(self._channel)
        self._health = self._channel.unary_unary(wiring.HEALTH_METHOD)

    def close(self) -> None:
        """Ends the calls that run: who waits for one, in whichever thread, gets a QuireError, as does who makes another. Returns within
        3 s, also after Ctrl-C in the midst of a call."""
        self._is_closed.set()
        wiring.close(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def generate(self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[RequestOptions]) -> Generation:
        """Continues a prompt. timeout_s is the call's deadline: past it the server drops the request too. Raises TypeError and ValueError
        for what cannot be sent at all (make_request); what the server refuses is a QuireError, as the first event is read."""
        return Generation(self._begin(self._stub.Generate, make_request(prompt, options), timeout_s), self._is_closed)

    def dump_kv(self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[RequestOptions]) -> Completion:
        """Runs a request to its end and reports the cache positions each continuation still saw (outputs[i].kv_dump). timeout_s as of
        generate."""
        options["dump_kv"] = True
        options["stream"] = False
        return self.generate(prompt, timeout_s=timeout_s, **options).result()

    def tokenize(self, text: str, *, add_special_tokens: bool = True, special_as_text: bool = True) -> list[int]:
        """Token ids of a text. add_special_tokens: with what the tokenizer puts around it (BOS); special_as_text: special tokens that
        stand in it are plain text. Raises QuireError, as every call here does."""
        request = service_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens, special_as_text=special_as_text)
        return list(self._unary(self._stub.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Ids, *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises QuireError: an id outside the vocabulary, a model without a tokenizer."""
        request = service_pb2.DetokenizeRequest(token_ids=ids_of(token_ids), skip_special_tokens=skip_special_tokens)
        return self._unary(self._stub.Detokenize, request).text

    def model(self) -> Model:
        """What is served and within which limits. Raises QuireError."""
        return model_from_wire(self._unary(self._stub.GetModel, service_pb2.GetModelRequest()))

    def load(self) -> Load:
        """The server's counters at this moment. Raises QuireError."""
        return load_from_wire(self._unary(self._stub.GetLoad, service_pb2.GetLoadRequest()))

    def abort(self, *request_ids: str) -> list[str]:
        """Ends requests by name, abort("a", "b"); returns those that were running."""
        check_request_ids(request_ids)
        return list(self._unary(self._stub.Abort, service_pb2.AbortRequest(request_ids=request_ids)).aborted_request_ids)

    def is_ready(self) -> bool:
        """Whether the server answers, within 2 s, and takes requests. Raises QuireError where this client is closed."""
        return self._is_ready(wiring.HEALTH_S)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Raises TimeoutError, and QuireError where this client is closed."""
        end = time.monotonic() + timeout_s
        while (left_s := end - time.monotonic()) > 0:
            if self._is_ready(min(left_s, wiring.HEALTH_S)):
                return
            time.sleep(max(0, min(0.05, end - time.monotonic())))
        raise TimeoutError(f"the server was not ready within {timeout_s} s")

    def _is_ready(self, within_s: float) -> bool:
        try:
            return wiring.is_serving(self._begin(self._health, wiring.health_request(wiring.SERVICE), within_s))
        except QuireError:
            if self._is_closed.is_set():
                raise
            return False

    def _unary(self, method: Any, request: Any) -> Any:
        return self._begin(method, request, self._timeout_s)

    def _begin(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        """What gRPC gives for a call: the answer, or a stream of them."""
        if self._is_closed.is_set():
            raise closed()
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failure(error, self._is_closed) from None
        except ValueError:
            if self._is_closed.is_set():  # by another thread, since
                raise closed() from None
            raise
