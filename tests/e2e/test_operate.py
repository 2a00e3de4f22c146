"""What an operator does to a real server: its port, reflection, health, TLS and drain, and what it logs."""

import json
import shutil
import signal
import subprocess
import time

import grpc
import pytest
from conftest import MODEL, Server, eventually, quire

from quire_client import Client, QuireError, Tls

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make a certificate with")


def test_reflection_lists_and_describes_the_service(server):
    with grpc.insecure_channel(server.address) as channel:
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        [services] = list(reflect(iter([b"\x3a\x01*"])))  # ServerReflectionRequest{list_services: "*"}
        [file] = list(reflect(iter([b"\x22\x1aquire.v1.GenerationService"])))  # {file_containing_symbol: ..}
    assert b"quire.v1.GenerationService" in services and b"grpc.health.v1.Health" in services
    assert b"quire/v1/service.proto" in file


@pytest.mark.parametrize(("flags", "code"), [((), grpc.StatusCode.UNIMPLEMENTED), (("--reflection",), grpc.StatusCode.OK)])
def test_reflection_on_a_public_address_is_asked_for(flags, code):
    server = Server("--host", "0.0.0.0", "--behind-proxy", *flags)
    with grpc.insecure_channel(server.address.replace("0.0.0.0", "127.0.0.1")) as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x01*"]))
        try:
            list(call)
        except grpc.RpcError:
            pass
        assert call.code() is code
    assert server.stop() == 0


def test_healthcheck_command_knows_ready_from_absent(server):
    assert quire("healthcheck", "--address", server.address).stdout == "SERVING\n"
    assert quire("healthcheck", "--address", server.address, "--service", "").returncode == 0
    assert quire("healthcheck", "--address", server.address, "--service", "no.such.Service").returncode == 1


def test_sigterm_lets_a_stream_finish():
    server = Server()
    with Client(server.address) as client:
        stream = client.generate("Once", max_tokens=400, temperature=0, ignore_eos=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(QuireError) as caught:
            assert eventually(lambda: not client.is_ready(), 5)
            client.generate("a", max_tokens=1).result()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert stream.result().usage.completion_tokens == 400
    assert server.wait() == 0


def test_a_drain_has_an_end():
    server = Server("--drain-timeout-ms", 300)
    with Client(server.address) as client:
        streams = [client.generate(f"Story {i}", max_tokens=4000, ignore_eos=True) for i in range(8)]
        for stream in streams:
            next(stream)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            with pytest.raises(QuireError):
                stream.result()
    assert server.wait() == 0
    assert time.monotonic() - start < 5


def test_a_request_leaves_one_line_with_ids_and_no_prompt():
    server = Server("--log-format", "json")
    with Client(server.address) as client:
        client.generate("A very secret prompt", max_tokens=2, ignore_eos=True, request_id="watched").result()
        client.dump_kv("A very secret prompt", max_tokens=2, ignore_eos=True, request_id="dumped")
        with client.generate("A very secret prompt", max_tokens=3000, ignore_eos=True, request_id="dropped") as stream:
            next(stream)
        for bad in ({"top_p": 2.0}, {"max_tokens": 5000}):  # refused by the mapping, and by the engine
            with pytest.raises(QuireError):
                client.generate("A very secret prompt", request_id="refused", **bad).result()
    assert server.stop() == 0
    assert "secret" not in "".join(server.log)
    lines = [json.loads(line) for line in server.log]
    [watched] = [line for line in lines if "watched" in line.values()]
    assert (watched["event"], watched["finish"], watched["completion_tokens"]) == ("call_end", "length", 2)
    assert 0 <= watched["queued_ms"] <= watched["first_token_ms"] <= watched["total_ms"]
    assert [line["event"] for line in lines if "dumped" in line.values()] == ["call_end"]
    refused = [line for line in lines if "refused" in line.values()]
    assert [(line["event"], line["code"]) for line in refused] == [("call_refused", "INVALID_ARGUMENT")] * 2
    [dropped] = [line for line in lines if "dropped" in line.values()]
    assert dropped["code"] == "CANCELLED" and dropped["finish"] == "cancelled"
    assert 0 <= dropped["queued_ms"] <= dropped["first_token_ms"] and dropped["completion_tokens"] > 0, "it ran before it was cancelled"
    assert all("5000" in line["message"] or "top_p" in line["message"] for line in refused)


def test_what_a_template_raises_reaches_the_client_and_not_the_log(tmp_path):
    for file in MODEL.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('Unknown content: ' + messages[0].content) }}")
    running = Server("--log-level", "debug", model=tmp_path)
    secret = "my secret " * 2000
    with Client(running.address) as client:
        with pytest.raises(QuireError) as refused:
            client.generate([{"role": "user", "content": secret}], max_tokens=1).result()
        with pytest.raises(QuireError) as role:
            client.generate([{"role": "x" * 20_000, "content": "a"}], max_tokens=1).result()
    assert running.stop() == 0
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT and refused.value.field == "messages"
    assert refused.value.message.startswith("chat template: Unknown content: my secret ") and len(refused.value.message) < 300
    assert role.value.code == grpc.StatusCode.INVALID_ARGUMENT and "role has 20000 bytes; at most 256" in role.value.message
    log = "".join(running.log)
    assert "code=INVALID_ARGUMENT" in log and "secret" not in log, log


@needs_openssl
def test_tls_with_and_without_the_right_certificate(tmp_path):
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path)

    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    for name in ("server", "client", "stranger"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", *subject)
    server = Server("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key", "--tls-client-ca", tmp_path / "client.pem")

    def works(root: str, identity: str | None) -> bool:
        read = lambda name: (tmp_path / name).read_bytes()  # noqa: E731
        tls = Tls(read(f"{root}.pem"), read(f"{identity}.key") if identity else None, read(f"{identity}.pem") if identity else None)
        with Client(server.address, tls=tls) as client:
            try:
                return client.generate("a", max_tokens=1, timeout_s=10).result().usage.completion_tokens == 1
            except QuireError:
                return False

    assert works("server", "client")
    assert not works("server", "stranger") and not works("server", None), "the server asks for a certificate of its authority"
    assert not works("stranger", "client"), "the client checks the server's"

    def healthcheck(*flags: str) -> subprocess.CompletedProcess:
        return quire("healthcheck", "--address", server.address, "--tls-ca", tmp_path / "server.pem", *flags)

    shown = healthcheck("--tls-cert", tmp_path / "client.pem", "--tls-key", tmp_path / "client.key")
    assert (shown.returncode, shown.stdout) == (0, "SERVING\n"), shown.stderr
    assert healthcheck().returncode == 1, "the server asks for a certificate"
    assert "--tls-key is missing" in healthcheck("--tls-cert", tmp_path / "client.pem").stderr
    assert server.stop() == 0


@needs_openssl
def test_healthcheck_names_the_tls_file_at_fault(tmp_path):
    """gRPC would say "empty address list" of each."""
    subprocess.run(["openssl", *"req -x509 -newkey rsa:2048 -nodes -keyout a.key -out a.pem -days 2 -subj /CN=localhost".split()], check=True, capture_output=True, cwd=tmp_path)
    (tmp_path / "none.pem").write_text("no certificate\n")
    good, key, bad, missing = (tmp_path / name for name in ("a.pem", "a.key", "none.pem", "missing.pem"))
    authority = "a PEM file of the authority that signed the server's certificate is wanted"
    for flags, said in (
        (["--tls-ca", bad], f"--tls-ca {bad}: it does not begin with a PEM certificate (-----BEGIN CERTIFICATE-----); {authority}"),
        (["--tls-ca", missing], f"--tls-ca {missing}: no such file; {authority}"),
        (["--tls-ca", good, "--tls-cert", key, "--tls-key", key], f"--tls-cert {key}: it does not begin with a PEM certificate (-----BEGIN CERTIFICATE-----); a PEM file of the client's"),
        (["--tls-ca", good, "--tls-cert", good, "--tls-key", bad], f"--tls-key {bad}: it holds no PEM private key"),
        (["--tls-ca", good, "--tls-key", key], "--tls-cert and --tls-key go together; --tls-cert is missing"),
        (["--tls-cert", good, "--tls-key", key], "--tls-cert and --tls-key need --tls-ca"),
    ):
        done = quire("healthcheck", "--address", "127.0.0.1:1", *flags)
        assert done.returncode == 1 and done.stderr.startswith(f"quire: {said}"), done.stderr
