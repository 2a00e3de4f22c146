"""Connections: how many, and what one too many does."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from conftest import ROOT, Server, quire

from quire_client import Client


def connect(address: str, stack: ExitStack, count: int) -> list[socket.socket]:
    host, port = address.rsplit(":", 1)
    return [stack.enter_context(socket.create_connection((host, int(port)), timeout=5)) for _ in range(count)]


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closed it: HTTP/2 begins with settings from the server's side."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def answers(address: str) -> bool:
    return quire("healthcheck", "--address", address).returncode == 0


@pytest.mark.parametrize(
    ("flags", "descriptors"),
    [(("--max-connections", 40), None), ((), 220)],  # our limit; fewer descriptors than the default limit wants
)
def test_connections_past_the_limit_are_closed_and_the_server_goes_on(flags, descriptors):
    server = Server(*flags, descriptors=descriptors)
    with Client(server.address) as client, ExitStack() as stack:
        first = client.generate("Once", max_tokens=300, temperature=0, ignore_eos=True)
        next(first)  # a connection that stays
        many = connect(server.address, stack, 300)
        assert is_closed(many[-1]) and not is_closed(many[0])
        assert first.result().usage.completion_tokens == 300  # who is in, is served
    time.sleep(0.5)
    assert answers(server.address)  # and who comes once others have gone
    assert server.stop() == 0
    assert any("event=connection_refused" in line for line in server.log)
    assert any("event=connections_limited" in line for line in server.log) is (descriptors is not None)


def test_as_many_connections_are_taken_as_the_limit_says(tmp_path):
    """What the server opens for itself, the files of a disk tier among it, is not counted."""
    server = Server("--max-connections", 6, "--disk-kv-dir", tmp_path, "--disk-kv-bytes", 50_000_000)
    time.sleep(0.5)  # the connection that asked whether the server is there is gone
    with ExitStack() as stack:
        many = connect(server.address, stack, 8)
        time.sleep(0.5)
        assert [is_closed(connection) for connection in many] == [False] * 6 + [True] * 2
    assert server.stop() == 0


def test_an_address_is_listened_on_as_given(tmp_path):
    for host in ("127.0.0.1", "localhost", f"unix:{tmp_path}/quire.sock"):
        server = Server("--host", host)
        assert answers(server.address), host
        assert server.stop() == 0
    assert not (tmp_path / "quire.sock").exists()  # nothing is left behind


# Ctrl-C where gRPC has begun a call and has nobody yet who would hear of its end.
INTERRUPTED = """
import sys
import grpc._channel
from quire_client import Client

def interrupt(*_):
    raise KeyboardInterrupt

with Client(sys.argv[1]) as client:
    client.model()
    grpc._channel._run_channel_spin_thread = interrupt
    client.generate("Once", max_tokens=300)
"""


def test_a_program_that_is_interrupted_in_the_midst_of_a_call_ends():
    server = Server()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python" / "src")}
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, server.address], env=env, capture_output=True, text=True, timeout=30)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt"), done.stderr
    assert answers(server.address)
    assert server.stop() == 0
