"""What both clients tell gRPC."""

import threading
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


# What closing takes where a call's end still comes is far below.
CLOSE_S = 3


def close(channel: grpc.Channel) -> None:
    """Ends the channel's calls and waits for them, CLOSE_S at most. gRPC waits for ever for a call that an exception left half made (Ctrl-C
    in the midst of it): the thread that waits is left behind then, and ends with the program."""
    waiting = threading.Thread(target=channel.close, daemon=True, name="quire-close")
    try:
        waiting.start()
    except RuntimeError:  # an interpreter that ends starts no threads
        return channel.close()
    waiting.join(CLOSE_S)


HEALTH_S = 2  # for one answer
HEALTH_METHOD = "/grpc.health.v1.Health/Check"


def health_request(service: str) -> bytes:
    """HealthCheckRequest{service}: one string field, shorter than 128 bytes."""
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def is_serving(response: bytes) -> bool:
    """HealthCheckResponse{status: SERVING}."""
    return response == b"\x08\x01"
