"""What the server answers, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from .wire import generation_pb2, service_pb2

_REASONS = {0: "", 1: "length", 2: "stop", 3: "cancelled", 4: "deadline", 5: "failed"}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability; None for a prompt's first token. top: (token id, logprob), likeliest first."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int  # with what the tokenizer or template put around the text
    completion_tokens: int  # over all continuations
    cached_tokens: int  # prompt tokens that the prefix cache had


@dataclass(frozen=True, slots=True)
class KvUsage:
    """What the KV cache did for one request."""

    blocks_peak: int
    blocks_shared_peak: int
    copies_on_write: int
    waste_percent: float
    prefill_mode: str  # "full", "full_then_cut" or "windowed", as its kv_policy has it


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds from arrival; None = did not happen."""

    queued_ms: float | None
    first_token_ms: float | None
    total_ms: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """What is new of one continuation. The last event of a request has usage, kv and timings."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str = ""  # "" = goes on; else length, stop, cancelled, deadline, failed
    stop_text: str | None = None
    stop_token_id: int | None = None
    kv_dump: tuple[tuple[tuple[int, ...], ...], ...] = ()  # [layer][head] -> positions
    request_id: str = ""  # in the first event
    prompt_token_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage | None = None
    kv: KvUsage | None = None
    timings: Timings | None = None


@dataclass(slots=True)
class Output:
    """One whole continuation."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""
    stop_text: str | None = None
    stop_token_id: int | None = None
    kv_dump: tuple[tuple[tuple[int, ...], ...], ...] = ()


@dataclass(slots=True)
class Completion:
    """A whole request."""

    request_id: str = ""
    prompt_token_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    outputs: list[Output] = field(default_factory=list)  # by index
    usage: Usage | None = None
    kv: KvUsage | None = None
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """The first continuation's text."""
        return self.outputs[0].text if self.outputs else ""

    def add(self, event: Event) -> None:
        """Takes one more event of the request."""
        while len(self.outputs) <= event.index:
            self.outputs.append(Output(len(self.outputs)))
        output = self.outputs[event.index]
        output.text += event.text
        output.token_ids += event.token_ids
        output.logprobs += event.logprobs
        if event.finish_reason:
            output.finish_reason = event.finish_reason
            output.stop_text, output.stop_token_id = event.stop_text, event.stop_token_id
            output.kv_dump = event.kv_dump
        if event.request_id:
            self.request_id = event.request_id
            self.prompt_token_ids, self.prompt_logprobs = event.prompt_token_ids, event.prompt_logprobs
        if event.usage:
            self.usage, self.kv, self.timings = event.usage, event.kv, event.timings


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may ask for at most."""

    max_n: int
    max_beam_width: int
    max_stop_strings: int
    max_stop_bytes: int
    max_stop_token_ids: int
    max_logprobs: int
    max_logit_bias: int
    max_bad_words: int
    max_bad_word_tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """What is served, and what a request may ask of it."""

    name: str
    architecture: str  # as its config.json says: "LlamaForCausalLM"
    dtype: str  # of activations: f32, bf16, f16
    device: str
    num_parameters: int
    num_layers: int
    vocab_size: int
    max_context_tokens: int  # prompt and output together
    kv_bytes_per_token: int  # of one sequence, all layers
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None  # where it has one
    has_tokenizer: bool
    has_chat_template: bool
    kv_cache_dtype: str
    block_tokens: int
    version: str
    limits: RequestLimits


@dataclass(frozen=True, slots=True)
class TierLoad:
    """A tier of the prefix cache below the device. hit_rate is of all prompt tokens."""

    blocks_total: int
    blocks_cached: int
    hit_tokens_total: int
    hit_rate: float
    blocks_written_total: int
    evictions_total: int
    write_failures_total: int
    read_failures_total: int


@dataclass(frozen=True, slots=True)
class PolicyLoad:
    """Running sequences under one KV policy."""

    name: str
    sequences: int
    slots: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Load:
    """Gauges of now; the wire's counters since the start stand in `totals` by name."""

    requests_waiting: int  # without those whose prompt is a text and still to be read
    sequences_running: int
    sequences_preempted: int  # begun, and gave their room to others
    blocks_total: int
    blocks_free: int
    blocks_held: int
    blocks_cached: int
    swap_blocks_total: int  # of host memory, for preempted sequences
    swap_blocks_held: int
    block_tokens: int
    kv_bytes_total: int
    kv_usage: float
    waste_percent: float
    host_us_per_step_p50: float
    step_ms_p50: float
    last_step_age_ms: float
    host_tier: TierLoad | None  # where there is one
    disk_tier: TierLoad | None
    disk_kv_state: str  # "" = no disk tier was asked for, "on", "off: REASON", "not written: REASON", "hangs: N copies have not returned"
    policies: tuple[PolicyLoad, ...]  # every policy there is
    tenants_tracked: int  # 0 where none is limited
    host_memory_bytes: int  # held, and the ceiling; both 0 without one
    max_host_memory_bytes: int
    host_memory_pressure: str  # "" = there is room, "shedding", "refusing"
    texts_waiting: int  # to be read: prompts, and those of tokenize and detokenize
    totals: dict[str, int]


def _optional(message, name: str):
    return getattr(message, name) if message.HasField(name) else None


def _logprobs(entries) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(e.token_id, _optional(e, "logprob"), tuple((t.token_id, t.logprob) for t in e.top)) for e in entries)


def dump_from_wire(dump: generation_pb2.KvDump) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(tuple(tuple(head.positions) for head in layer.heads) for layer in dump.layers)


def event_from_wire(m: generation_pb2.GenerateResponse) -> Event:
    last = m.HasField("usage")
    return Event(
        index=m.index,
        text=m.text,
        token_ids=tuple(m.token_ids),
        logprobs=_logprobs(m.logprobs),
        finish_reason=_REASONS.get(m.finish_reason, "failed"),
        stop_text=_optional(m, "stop_text"),
        stop_token_id=_optional(m, "stop_token_id"),
        kv_dump=dump_from_wire(m.kv_dump),
        request_id=m.request_id,
        prompt_token_ids=tuple(m.prompt_token_ids),
        prompt_logprobs=_logprobs(m.prompt_logprobs),
        usage=Usage(m.usage.prompt_tokens, m.usage.completion_tokens, m.usage.cached_tokens) if last else None,
        kv=KvUsage(m.kv.blocks_peak, m.kv.blocks_shared_peak, m.kv.copies_on_write, m.kv.waste_percent, m.kv.prefill_mode) if last else None,
        timings=Timings(*(_optional(m.timings, name) for name in Timings.__slots__)) if last else None,
    )


def model_from_wire(m: service_pb2.GetModelResponse) -> Model:
    values = {name: getattr(m, name) for name in Model.__slots__}
    limits = RequestLimits(**{name: getattr(m.limits, name) for name in RequestLimits.__slots__})
    ids = {"eos_token_ids": tuple(m.eos_token_ids), "bos_token_id": _optional(m, "bos_token_id")}
    return Model(**{**values, **ids, "limits": limits})


def _tier_from_wire(m: service_pb2.GetLoadResponse, name: str) -> TierLoad | None:
    tier = _optional(m, name)
    return tier and TierLoad(**{field: getattr(tier, field) for field in TierLoad.__slots__})


def load_from_wire(m: service_pb2.GetLoadResponse) -> Load:
    names = [f.name for f in m.DESCRIPTOR.fields]
    totals = {name: getattr(m, name) for name in names if name.endswith("_total") and name not in Load.__slots__}
    plain = {name: getattr(m, name) for name in names if name in Load.__slots__ and not name.endswith("_tier") and name != "policies"}
    policies = tuple(PolicyLoad(p.name, p.sequences, p.slots, p.blocks) for p in m.policies)
    return Load(**plain, host_tier=_tier_from_wire(m, "host_tier"), disk_tier=_tier_from_wire(m, "disk_tier"), policies=policies, totals=totals)
