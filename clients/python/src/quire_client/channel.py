"""What both clients tell gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

SERVICE = "quire.v1.GenerationService"

# The server allows a ping every 10 s. Prompts may be long: its own limit for a message is 4 MiB.
CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 << 20),
)


@dataclass(frozen=True)
class Tls:
    """PEM texts. root_certificates None = the system's; certificate and key where the server asks for them (mTLS)."""

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate_chain)


HEALTH_METHOD = "/grpc.health.v1.Health/Check"


def health_request(service: str) -> bytes:
    """HealthCheckRequest{service}: one string field, shorter than 128 bytes."""
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def is_serving(response: bytes) -> bool:
    """HealthCheckResponse{status: SERVING}."""
    return response == b"\x08\x01"
