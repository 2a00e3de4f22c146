"""What the end-to-end tests share: the real binary, the demo model, a running server, the Python client.

Environment: QUIRE_BINARY (the binary to test), QUIRE_ROOT (the repository). Nothing here needs a network but loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("QUIRE_ROOT", Path(__file__).resolve().parents[2]))
os.environ.setdefault("QUIRE_ROOT", str(ROOT))
os.environ.setdefault("QUIRE_BINARY", str(ROOT / "build" / "release" / "quire"))
sys.path.insert(0, str(ROOT / "clients" / "python" / "src"))

BINARY = os.environ["QUIRE_BINARY"]
MODEL = ROOT / "models" / "demo"
START_S = 60  # longest wait for a READY line: two cores may be compiling beside us


def quire(
    *arguments: object,
    stdin: str | None = None,
    environment: dict[str, str] | None = None,
    address_space: int = 0,
    file_size: int = 0,
) -> subprocess.CompletedProcess:
    """Runs one command to its end. address_space, file_size: what RLIMIT_AS and RLIMIT_FSIZE allow the process, bytes; 0 = all."""
    limits = {resource.RLIMIT_AS: address_space, resource.RLIMIT_FSIZE: file_size}

    def limit() -> None:
        for kind, size in limits.items():
            if size > 0:
                resource.setrlimit(kind, (size, size))

    return subprocess.run(
        [BINARY, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
        preexec_fn=limit if any(limits.values()) else None,
    )


def generate(*arguments: object, **kwargs) -> list[dict]:
    """The JSON objects of a `quire generate` that must succeed."""
    done = quire("generate", "--model", MODEL, "--output", "json", *arguments, **kwargs)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def model_with_nan_weights(directory: Path) -> Path:
    """A tiny random model whose last norm is NaN: every row of its logits is too."""
    shutil.copytree(ROOT / "tests" / "golden" / "families" / "qwen3", directory)
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    header_bytes = int.from_bytes(content[:8], "little")
    norm = json.loads(content[8 : 8 + header_bytes])["model.norm.weight"]
    begin, end = (8 + header_bytes + offset for offset in norm["data_offsets"])
    content[begin:end] = b"\xff" * (end - begin)  # NaN in f32, f16 and bf16
    file.write_bytes(content)
    return directory


class Server:
    """A `quire serve` process."""

    def __init__(self, *arguments: object, model: Path = MODEL, descriptors: int | None = None):
        """descriptors: what RLIMIT_NOFILE allows the process."""
        self.process = subprocess.Popen(
            [BINARY, "serve", "--model", str(model), "--port", "0", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=descriptors and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))),
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        self.ready_line = self.process.stdout.readline()
        timer.cancel()
        assert self.ready_line.startswith("READY grpc="), "".join(self.log)
        self.address = self.ready_line.split()[1].removeprefix("grpc=")

    def wait(self) -> int:
        """Exit code of a process that was told to stop, or is about to."""
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=5)
        return code

    def stop(self) -> int:
        """Exit code after one SIGTERM: a second one would end a drain at once."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


def eventually(holds, within_s: float = 10) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return bool(holds())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    assert running.stop() == 0, "".join(running.log)


@pytest.fixture
def client(server: Server):
    from quire_client import Client

    with Client(server.address) as made:
        yield made


@pytest.fixture(scope="session")
def recall_goldens() -> dict:
    """Greedy tokens of the demo model, computed in float64 by an independent implementation."""
    return json.loads((ROOT / "tests" / "golden" / "demo" / "recall-9M.json").read_text())
