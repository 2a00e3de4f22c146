"""Keyword arguments as a GenerateRequest."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, TypedDict

from .wire import generation_pb2, sampling_pb2


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


# Python's integers, an array library's, or an array of these.
Ids = Iterable[SupportsIndex]
# A text, token ids, or the messages of a chat.
Prompt = str | Ids | Iterable[Message] | Iterable[Mapping[str, str]]

_WHAT_A_PROMPT_IS = "a prompt is a string, a list of token ids, or a list of {'role': .., 'content': ..}"


class Retention(TypedDict, total=False):
    """How long what a request leaves in the prefix cache is worth keeping: KvRetention in quire/v1/generation.proto."""

    retention_class: int
    ttl_ms: int
    cost: float


class RequestOptions(TypedDict, total=False):
    """What a request may say beside its prompt; what is left out takes the server's default. Units and ranges: quire/v1/*.proto."""

    # choice of the next token
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram: int
    logit_bias: Mapping[int, float]
    allowed_token_ids: Ids
    forced_token_ids: Ids
    bad_words: Iterable[Ids]
    seed: int
    # when it ends
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Ids
    include_stop: bool
    ignore_eos: bool
    # how many
    n: int
    best_of: int
    beam_width: int
    length_penalty: float
    early_stopping: bool
    # what is reported
    logprobs: int
    prompt_logprobs: int
    skip_special_tokens: bool
    # the request itself
    request_id: str
    add_special_tokens: bool
    special_as_text: bool
    stream: bool
    kv_policy: str
    dump_kv: bool
    bypass_prefix_cache: bool
    cache_salt: str
    kv_retention: Retention
    tenant: str
    priority: int
    deadline_ms: int


_SAMPLING = {field.name for field in sampling_pb2.SamplingParams.DESCRIPTOR.fields}
_REQUEST = {field.name for field in generation_pb2.GenerateRequest.DESCRIPTOR.fields} - {"text", "token_ids", "messages", "sampling"}


def ids_of(ids: Ids) -> list[int]:
    """Each converted here: of an array, protobuf drops what it cannot hold and all that follows, in silence."""
    return [operator.index(i) for i in ids]


def _add_message(request: generation_pb2.GenerateRequest, index: int, message: Mapping[str, Any]) -> None:
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise TypeError(f"message {index} of the prompt has no text {key!r}")
    request.messages.messages.add(role=message["role"], content=message["content"])


def _set_prompt(request: generation_pb2.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, (bytes, bytearray, memoryview)):
        raise TypeError(f"the prompt is {type(prompt).__name__}; decode it to a string, or give list(prompt) if its bytes are token ids")
    if isinstance(prompt, str):
        request.text = prompt
        return
    if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
        raise TypeError(_WHAT_A_PROMPT_IS)
    prompt = list(prompt)  # an iterator is read once
    if not prompt:
        request.token_ids.SetInParent()
    elif all(hasattr(part, "__index__") for part in prompt):
        request.token_ids.ids.extend(ids_of(prompt))  # type: ignore[arg-type]
    elif all(isinstance(part, Mapping) for part in prompt):
        for index, part in enumerate(prompt):
            _add_message(request, index, part)  # type: ignore[arg-type]
    else:
        raise TypeError(_WHAT_A_PROMPT_IS)


def _set_sampling(sampling: sampling_pb2.SamplingParams, name: str, value: Any) -> None:
    if name == "logit_bias":
        sampling.logit_bias.update(value)
    elif name == "bad_words":
        for word in value:
            sampling.bad_words.add(ids=ids_of(word))
    elif name == "stop":
        sampling.stop.extend([value] if isinstance(value, str) else value)
    elif name in ("allowed_token_ids", "forced_token_ids", "stop_token_ids"):
        getattr(sampling, name).extend(ids_of(value))
    else:
        setattr(sampling, name, value)


def make_request(prompt: Prompt, options: Mapping[str, Any]) -> generation_pb2.GenerateRequest:
    """Raises TypeError for an option that does not exist or has the wrong type, ValueError for what its field cannot hold: a number too
    large for it, text that is not UTF-8, a key that kv_retention has not."""
    request = generation_pb2.GenerateRequest()
    _set_prompt(request, prompt)
    for name, value in options.items():
        if value is None:
            continue
        if name in _SAMPLING:
            _set_sampling(request.sampling, name, value)
        elif name == "kv_retention":
            request.kv_retention.MergeFrom(generation_pb2.KvRetention(**value))
        elif name in _REQUEST:
            setattr(request, name, value)
        else:
            raise TypeError(f"generate() got an unexpected keyword argument '{name}'")
    return request


def check_request_ids(request_ids: tuple[Any, ...]) -> None:
    """TypeError for what is no name: abort takes names, not a list of them."""
    for name in request_ids:
        if not isinstance(name, str):
            raise TypeError(f'abort takes names, abort("a", "b"); {type(name).__name__} is none')
