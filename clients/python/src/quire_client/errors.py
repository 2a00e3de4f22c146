"""What the server refuses, as one exception with the standard details (google.rpc) read out."""

from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory

_Type = descriptor_pb2.FieldDescriptorProto


def _detail_types() -> dict[str, Any]:
    """google.rpc's Status, BadRequest, RetryInfo and QuotaFailure in a pool of their own, which cannot clash with another copy of them."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="quire_client/google_rpc.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=["google/protobuf/any.proto", "google/protobuf/duration.proto"],
    )

    def message(into: Any, name: str, **fields: tuple[int, int, int, str]) -> descriptor_pb2.DescriptorProto:
        made = into.add(name=name)
        for field, (number, kind, label, type_name) in fields.items():
            made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name or None)
        return made

    one, many = _Type.LABEL_OPTIONAL, _Type.LABEL_REPEATED
    text, number, large, nested = _Type.TYPE_STRING, _Type.TYPE_INT32, _Type.TYPE_INT64, _Type.TYPE_MESSAGE
    message(
        file.message_type,
        "Status",
        code=(1, number, one, ""),
        message=(2, text, one, ""),
        details=(3, nested, many, ".google.protobuf.Any"),
    )
    message(file.message_type, "RetryInfo", retry_delay=(1, nested, one, ".google.protobuf.Duration"))
    bad_request = message(file.message_type, "BadRequest", field_violations=(1, nested, many, ".google.rpc.BadRequest.FieldViolation"))
    message(bad_request.nested_type, "FieldViolation", field=(1, text, one, ""), description=(2, text, one, ""))
    quota = message(file.message_type, "QuotaFailure", violations=(1, nested, many, ".google.rpc.QuotaFailure.Violation"))
    message(
        quota.nested_type,
        "Violation",
        subject=(1, text, one, ""),
        description=(2, text, one, ""),
        quota_id=(5, text, one, ""),
        quota_value=(7, large, one, ""),
    )
    pool.Add(file)
    names = ("Status", "RetryInfo", "BadRequest", "QuotaFailure")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}")) for name in names}


_DETAILS = _detail_types()


class QuireError(Exception):
    """A call that failed.

    code: the gRPC status code. field: path of the request's field at fault ("sampling.top_p"), or None.
    retry_after_s: seconds after which trying again makes sense, or None. quotas: the limits of one tenant that were reached, by name
    ("max_tenant_tokens_per_minute"), with their values.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        field: str | None = None,
        retry_after_s: float | None = None,
        quotas: dict[str, int] | None = None,
    ):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.quotas = quotas or {}

    def __reduce__(self) -> tuple[Any, ...]:
        # What Exception pickles, its one text, makes no QuireError.
        return type(self), (self.code, self.message, self.field, self.retry_after_s, self.quotas), vars(self)

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> "QuireError":
        """Reads an error of grpc or grpc.aio."""
        field = retry_after_s = quotas = None
        for key, value in error.trailing_metadata() or ():
            if key != "grpc-status-details-bin":
                continue
            for detail in _DETAILS["Status"].FromString(value).details:
                kind = detail.type_url.rsplit(".", 1)[-1]
                if kind == "BadRequest":
                    violations = _DETAILS["BadRequest"].FromString(detail.value).field_violations
                    field = violations[0].field if violations else None
                elif kind == "RetryInfo":
                    delay = _DETAILS["RetryInfo"].FromString(detail.value).retry_delay
                    retry_after_s = delay.seconds + delay.nanos / 1e9
                elif kind == "QuotaFailure":
                    violations = _DETAILS["QuotaFailure"].FromString(detail.value).violations
                    quotas = {v.quota_id: v.quota_value for v in violations}
        return cls(error.code(), error.details() or "", field, retry_after_s, quotas)


def closed() -> QuireError:
    """What every call of a closed client raises, and reading what closing has ended."""
    return QuireError(grpc.StatusCode.CANCELLED, "this client is closed")
