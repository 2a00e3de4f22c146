from . import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenizeRequest(_message.Message):
    __slots__ = ("text", "add_special_tokens", "special_as_text")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_AS_TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    add_special_tokens: bool
    special_as_text: bool
    def __init__(self, text: _Optional[str] = ..., add_special_tokens: bool = ..., special_as_text: bool = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("token_ids", "skip_special_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: bool = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "architecture", "dtype", "device", "num_parameters", "num_layers", "vocab_size", "max_context_tokens", "kv_bytes_per_token", "eos_token_ids", "bos_token_id", "has_tokenizer", "has_chat_template", "kv_cache_dtype", "block_tokens", "version", "limits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    HAS_TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    dtype: str
    device: str
    num_parameters: int
    num_layers: int
    vocab_size: int
    max_context_tokens: int
    kv_bytes_per_token: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bos_token_id: int
    has_tokenizer: bool
    has_chat_template: bool
    kv_cache_dtype: str
    block_tokens: int
    version: str
    limits: RequestLimits
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., num_parameters: _Optional[int] = ..., num_layers: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_context_tokens: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., bos_token_id: _Optional[int] = ..., has_tokenizer: bool = ..., has_chat_template: bool = ..., kv_cache_dtype: _Optional[str] = ..., block_tokens: _Optional[int] = ..., version: _Optional[str] = ..., limits: _Optional[_Union[RequestLimits, _Mapping]] = ...) -> None: ...

class RequestLimits(_message.Message):
    __slots__ = ("max_n", "max_beam_width", "max_stop_strings", "max_stop_bytes", "max_stop_token_ids", "max_logprobs", "max_logit_bias", "max_bad_words", "max_bad_word_tokens")
    MAX_N_FIELD_NUMBER: _ClassVar[int]
    MAX_BEAM_WIDTH_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MAX_BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_BAD_WORD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_n: int
    max_beam_width: int
    max_stop_strings: int
    max_stop_bytes: int
    max_stop_token_ids: int
    max_logprobs: int
    max_logit_bias: int
    max_bad_words: int
    max_bad_word_tokens: int
    def __init__(self, max_n: _Optional[int] = ..., max_beam_width: _Optional[int] = ..., max_stop_strings: _Optional[int] = ..., max_stop_bytes: _Optional[int] = ..., max_stop_token_ids: _Optional[int] = ..., max_logprobs: _Optional[int] = ..., max_logit_bias: _Optional[int] = ..., max_bad_words: _Optional[int] = ..., max_bad_word_tokens: _Optional[int] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("requests_waiting", "sequences_running", "blocks_total", "blocks_free", "blocks_held", "blocks_cached", "block_tokens", "kv_bytes_total", "kv_usage", "waste_percent", "requests_submitted_total", "requests_finished_total", "requests_refused_total", "requests_cancelled_total", "requests_failed_total", "prompt_tokens_total", "generation_tokens_total", "cached_tokens_total", "prefix_queries_tokens_total", "preemptions_total", "copies_on_write_total", "evictions_total", "steps_total", "failed_without_logits_total", "shared_read_tokens_total", "tail_drops_total", "heads_shortened_total", "swap_outs_total", "swap_ins_total", "swap_failures_total", "swap_blocks_total", "swap_blocks_held", "host_us_per_step_p50", "step_ms_p50", "last_step_age_ms", "host_tier", "disk_tier", "disk_kv_state", "disk_corrupt_blocks_total", "tier_waits_given_up_total", "policies", "policy_dropped_tokens_total", "attention_read_bytes_total", "bytes_from_device_total", "bytes_to_device_total", "bytes_host_to_disk_total", "tenants_tracked", "refused_tenant_parallel_total", "refused_tenant_requests_total", "refused_tenant_tokens_total", "host_memory_bytes", "max_host_memory_bytes", "host_memory_pressure", "refused_host_memory_total", "texts_waiting", "refused_texts_total", "sequences_preempted")
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_RUNNING_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_HELD_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    WASTE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_SUBMITTED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FINISHED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_REFUSED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_CANCELLED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FAILED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERIES_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    COPIES_ON_WRITE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FAILED_WITHOUT_LOGITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SHARED_READ_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TAIL_DROPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HEADS_SHORTENED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SWAP_OUTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SWAP_INS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SWAP_FAILURES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SWAP_BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SWAP_BLOCKS_HELD_FIELD_NUMBER: _ClassVar[int]
    HOST_US_PER_STEP_P50_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_P50_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    HOST_TIER_FIELD_NUMBER: _ClassVar[int]
    DISK_TIER_FIELD_NUMBER: _ClassVar[int]
    DISK_KV_STATE_FIELD_NUMBER: _ClassVar[int]
    DISK_CORRUPT_BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TIER_WAITS_GIVEN_UP_TOTAL_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    POLICY_DROPPED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_READ_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FROM_DEVICE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_TO_DEVICE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_HOST_TO_DISK_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENANTS_TRACKED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TENANT_PARALLEL_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TENANT_REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TENANT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_HOST_MEMORY_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TEXTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    requests_waiting: int
    sequences_running: int
    blocks_total: int
    blocks_free: int
    blocks_held: int
    blocks_cached: int
    block_tokens: int
    kv_bytes_total: int
    kv_usage: float
    waste_percent: float
    requests_submitted_total: int
    requests_finished_total: int
    requests_refused_total: int
    requests_cancelled_total: int
    requests_failed_total: int
    prompt_tokens_total: int
    generation_tokens_total: int
    cached_tokens_total: int
    prefix_queries_tokens_total: int
    preemptions_total: int
    copies_on_write_total: int
    evictions_total: int
    steps_total: int
    failed_without_logits_total: int
    shared_read_tokens_total: int
    tail_drops_total: int
    heads_shortened_total: int
    swap_outs_total: int
    swap_ins_total: int
    swap_failures_total: int
    swap_blocks_total: int
    swap_blocks_held: int
    host_us_per_step_p50: float
    step_ms_p50: float
    last_step_age_ms: float
    host_tier: TierLoad
    disk_tier: TierLoad
    disk_kv_state: str
    disk_corrupt_blocks_total: int
    tier_waits_given_up_total: int
    policies: _containers.RepeatedCompositeFieldContainer[PolicyLoad]
    policy_dropped_tokens_total: int
    attention_read_bytes_total: int
    bytes_from_device_total: int
    bytes_to_device_total: int
    bytes_host_to_disk_total: int
    tenants_tracked: int
    refused_tenant_parallel_total: int
    refused_tenant_requests_total: int
    refused_tenant_tokens_total: int
    host_memory_bytes: int
    max_host_memory_bytes: int
    host_memory_pressure: str
    refused_host_memory_total: int
    texts_waiting: int
    refused_texts_total: int
    sequences_preempted: int
    def __init__(self, requests_waiting: _Optional[int] = ..., sequences_running: _Optional[int] = ..., blocks_total: _Optional[int] = ..., blocks_free: _Optional[int] = ..., blocks_held: _Optional[int] = ..., blocks_cached: _Optional[int] = ..., block_tokens: _Optional[int] = ..., kv_bytes_total: _Optional[int] = ..., kv_usage: _Optional[float] = ..., waste_percent: _Optional[float] = ..., requests_submitted_total: _Optional[int] = ..., requests_finished_total: _Optional[int] = ..., requests_refused_total: _Optional[int] = ..., requests_cancelled_total: _Optional[int] = ..., requests_failed_total: _Optional[int] = ..., prompt_tokens_total: _Optional[int] = ..., generation_tokens_total: _Optional[int] = ..., cached_tokens_total: _Optional[int] = ..., prefix_queries_tokens_total: _Optional[int] = ..., preemptions_total: _Optional[int] = ..., copies_on_write_total: _Optional[int] = ..., evictions_total: _Optional[int] = ..., steps_total: _Optional[int] = ..., failed_without_logits_total: _Optional[int] = ..., shared_read_tokens_total: _Optional[int] = ..., tail_drops_total: _Optional[int] = ..., heads_shortened_total: _Optional[int] = ..., swap_outs_total: _Optional[int] = ..., swap_ins_total: _Optional[int] = ..., swap_failures_total: _Optional[int] = ..., swap_blocks_total: _Optional[int] = ..., swap_blocks_held: _Optional[int] = ..., host_us_per_step_p50: _Optional[float] = ..., step_ms_p50: _Optional[float] = ..., last_step_age_ms: _Optional[float] = ..., host_tier: _Optional[_Union[TierLoad, _Mapping]] = ..., disk_tier: _Optional[_Union[TierLoad, _Mapping]] = ..., disk_kv_state: _Optional[str] = ..., disk_corrupt_blocks_total: _Optional[int] = ..., tier_waits_given_up_total: _Optional[int] = ..., policies: _Optional[_Iterable[_Union[PolicyLoad, _Mapping]]] = ..., policy_dropped_tokens_total: _Optional[int] = ..., attention_read_bytes_total: _Optional[int] = ..., bytes_from_device_total: _Optional[int] = ..., bytes_to_device_total: _Optional[int] = ..., bytes_host_to_disk_total: _Optional[int] = ..., tenants_tracked: _Optional[int] = ..., refused_tenant_parallel_total: _Optional[int] = ..., refused_tenant_requests_total: _Optional[int] = ..., refused_tenant_tokens_total: _Optional[int] = ..., host_memory_bytes: _Optional[int] = ..., max_host_memory_bytes: _Optional[int] = ..., host_memory_pressure: _Optional[str] = ..., refused_host_memory_total: _Optional[int] = ..., texts_waiting: _Optional[int] = ..., refused_texts_total: _Optional[int] = ..., sequences_preempted: _Optional[int] = ...) -> None: ...

class PolicyLoad(_message.Message):
    __slots__ = ("name", "sequences", "slots", "blocks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequences: int
    slots: int
    blocks: int
    def __init__(self, name: _Optional[str] = ..., sequences: _Optional[int] = ..., slots: _Optional[int] = ..., blocks: _Optional[int] = ...) -> None: ...

class TierLoad(_message.Message):
    __slots__ = ("blocks_total", "blocks_cached", "hit_tokens_total", "hit_rate", "blocks_written_total", "evictions_total", "write_failures_total", "read_failures_total")
    BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_WRITTEN_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WRITE_FAILURES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    READ_FAILURES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    blocks_total: int
    blocks_cached: int
    hit_tokens_total: int
    hit_rate: float
    blocks_written_total: int
    evictions_total: int
    write_failures_total: int
    read_failures_total: int
    def __init__(self, blocks_total: _Optional[int] = ..., blocks_cached: _Optional[int] = ..., hit_tokens_total: _Optional[int] = ..., hit_rate: _Optional[float] = ..., blocks_written_total: _Optional[int] = ..., evictions_total: _Optional[int] = ..., write_failures_total: _Optional[int] = ..., read_failures_total: _Optional[int] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_ids",)
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("aborted_request_ids",)
    ABORTED_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    aborted_request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, aborted_request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DumpKvRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _generation_pb2.GenerateRequest
    def __init__(self, request: _Optional[_Union[_generation_pb2.GenerateRequest, _Mapping]] = ...) -> None: ...

class DumpKvResponse(_message.Message):
    __slots__ = ("prompt_token_ids", "outputs")
    class Output(_message.Message):
        __slots__ = ("index", "token_ids", "finish_reason", "kv_dump")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
        KV_DUMP_FIELD_NUMBER: _ClassVar[int]
        index: int
        token_ids: _containers.RepeatedScalarFieldContainer[int]
        finish_reason: _generation_pb2.FinishReason
        kv_dump: _generation_pb2.KvDump
        def __init__(self, index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., kv_dump: _Optional[_Union[_generation_pb2.KvDump, _Mapping]] = ...) -> None: ...
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedCompositeFieldContainer[DumpKvResponse.Output]
    def __init__(self, prompt_token_ids: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[_Union[DumpKvResponse.Output, _Mapping]]] = ...) -> None: ...
