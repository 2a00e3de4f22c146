"""Threads that the system does not start: under each limit a command does its work or says in one line which thread was refused, and ends.

RLIMIT_NPROC counts all threads of a user and binds nobody but users without privileges, so the commands run as one that nobody else is.
"""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BINARY, MODEL

from quire_client import Client, QuireError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a user of its own, whose threads are counted, is root's to choose")

USER = 61_234 + os.getpid() % 1000
FIRST_TO_READY = 128  # more threads than a server starts on any machine, see server/grpc_threads.cc
THREADS = ("--threads", "3", "--text-threads", "3")


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[Path]:
    """The binary and the model where another user may read them, and a folder in which it may write."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="quire-threads-"))
    folder.chmod(0o755)
    shutil.copy(BINARY, folder / "quire")
    shutil.copytree(MODEL, folder / "demo")
    (folder / "disk").mkdir()
    os.chown(folder / "disk", USER, USER)
    yield folder
    shutil.rmtree(folder)


def start(folder: Path, num_threads: int, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [folder / "quire", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        user=USER,
        group=USER,
        extra_groups=[],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (num_threads, num_threads)),
    )


def refused_thread(code: int, output: str, log: str, num_threads: int) -> str:
    """Of a command that did not do its work: which thread it was that the system did not start."""
    last = log.splitlines()[-1] if log else ""
    assert (code, output) == (1, ""), f"with {num_threads} threads: exit code {code}, {output!r}, {log}"
    begin = "quire: the system starts no thread for "
    assert last.startswith(begin) and log.count("quire: ") == 1, f"with {num_threads} threads: {log}"
    assert "Resource temporarily unavailable" in last and last.endswith(f"is {num_threads}") or "pids.max" in last, last
    return last.removeprefix(begin).split(": ")[0].split(" (")[0]


def serve_once(folder: Path, num_threads: int, *options: object) -> str:
    """"" if it got to serve, answered a call, and ended in order when told to; else the thread that was refused."""
    server = start(folder, num_threads, "serve", "--model", "demo", "--port", 0, "--kv-cache-bytes", 50_000_000, *THREADS, *options)
    timer = threading.Timer(60, server.kill)
    timer.start()
    try:
        ready = server.stdout.readline()
        if ready:
            with Client(ready.split()[1].removeprefix("grpc=")) as client:
                answer = client.generate("Once upon a time", max_tokens=3, temperature=0, ignore_eos=True, timeout_s=30).result()
                assert answer.usage.completion_tokens == 3
                # A timer that fires, for which gRPC starts a thread: where it gets none it would not come to an end afterwards.
                with pytest.raises(QuireError, match="(?i)deadline"):
                    client.generate("Once upon a time", max_tokens=4000, ignore_eos=True, timeout_s=0.05).result()
            server.send_signal(signal.SIGTERM)
        output, log = server.communicate(timeout=60)
    finally:
        timer.cancel()
        server.kill()
    if not ready:
        return refused_thread(server.returncode, output, log, num_threads)
    assert server.returncode == 0 and "event=stopped" in log, f"with {num_threads} threads: exit code {server.returncode}, {log}"
    return ""


@pytest.mark.parametrize("tiers", [False, True])
def test_a_server_serves_or_names_the_thread_that_was_refused(open_to_all, tiers):
    options = ["--host-kv-bytes", 10_000_000, "--disk-kv-dir", "disk", "--disk-kv-bytes", 10_000_000] if tiers else []
    expected = {"the watch over stalled calls", "texts", "gRPC", "the CPU's kernels", "the executor", "delivery", "the engine"}
    expected |= {"copies between tiers"} if tiers else set()
    names: set[str] = set()
    # A thread that ends while others start makes room for one of them at some moments and not at others.
    for _ in range(5):
        refused: list[str] = []
        while len(refused) < FIRST_TO_READY:
            refused.append(serve_once(open_to_all, len(refused) + 1, *options))
            if refused[-1] == "":
                break
        assert refused[-1] == "", "no limit was enough"
        names |= set(refused)
        if expected <= names:
            break
    assert expected <= names, names
    enough = len(refused)
    for num_threads in range(enough + 1, enough + 4):
        assert serve_once(open_to_all, num_threads, *options) == "", "fewer were enough"


def test_commands_without_a_server_do_the_same(open_to_all):
    folder = open_to_all
    for arguments in (
        ["generate", "--model", "demo", "--prompt", "Once upon a time", "--max-tokens", 2, "--threads", 3],
        ["healthcheck", "--address", "127.0.0.1:1", "--timeout-ms", 2000],
    ):
        done = []
        for num_threads in range(1, 9):
            command = start(folder, num_threads, *arguments)
            try:
                output, log = command.communicate(timeout=60)
            finally:
                command.kill()
            worked = command.returncode == 0 or "127.0.0.1:1: " in log
            done.append("" if worked else refused_thread(command.returncode, output, log, num_threads))
        assert done[0] and not done[-1], done
        assert "" not in done[: done.index("")] and not any(done[done.index("") :]), done
