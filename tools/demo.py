"""./quire demo: serves the demo model and shows, from a gRPC client, what a KV cache is for.

1. A fact is planted at the start of some pages of text and asked for at their end; the answer streams in word by word.
2. The same pages with another question: the prefix cache has them, so the first token comes sooner.
3. Four samples of one prompt: the prompt is computed and stored once, and blocks are copied only where the samples part.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from quire_client import Client, Completion, QuireError  # clients/python, installed into .venv by the launcher

ROOT = Path(__file__).resolve().parents[1]
NAME, KEY, OTHER_NAME, OTHER_KEY = "Emma", "48213", "Victor", "90576"
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def heading(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}", flush=True)


@contextlib.contextmanager
def step(name: str):
    """One line on standard error for what takes a moment, as the launcher's: on a terminal with the seconds so far."""
    start, done = time.monotonic(), threading.Event()

    def tick() -> None:
        while not done.wait(0.5):
            print(f"\r  {name + ' ...':44} {time.monotonic() - start:4.0f} s\033[K", end="", file=sys.stderr, flush=True)

    ticking = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        ticking.start()
    try:
        yield
    except BaseException:
        outcome = "FAILED"
        raise
    else:
        outcome = "done"
    finally:
        done.set()
        if ticking.is_alive():
            ticking.join()
        wipe = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{wipe}  {name:44} {outcome}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def start_server(binary: Path, model: Path) -> tuple[subprocess.Popen, str]:
    """Starts `quire serve` on a free port and waits for its READY line. Returns the process and its address."""
    log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would stop it once full
    # In a process group of its own: Ctrl-C in a terminal is the demo's to hear, which ends the server. Else it would lose its connection first, or not.
    server = subprocess.Popen([binary, "serve", "--model", model, "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True, process_group=0)
    try:
        line = server.stdout.readline()
    except BaseException:
        server.terminate()
        raise
    ready = re.match(r"READY grpc=(\S+) model=(\S+)", line)
    if not ready:
        server.terminate()
        server.wait()
        log.seek(0)
        sys.exit(f"the server did not start: {line}{log.read()}")
    return server, ready.group(1)


def stream(client: Client, prompt: str, **options) -> tuple[Completion, float, float]:
    """Prints a generation as it comes. Returns it with the seconds to its first text and in all."""
    start = time.perf_counter()
    first = None
    generation = client.generate(prompt, **options)
    for event in generation:
        if event.text and first is None:
            first = time.perf_counter() - start
        print(event.text, end="", flush=True)
    print(flush=True)
    return generation.result(), first or 0.0, time.perf_counter() - start


@contextlib.contextmanager
def ended_by_signals(server: subprocess.Popen):
    """While a client is at work Ctrl-C and SIGTERM end the server and then this program, and nothing is raised.

    An exception that comes in the midst of gRPC's own code can leave a call half made, for whose end closing the channel waits for ever.
    """

    def end(number: int, _) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # a second one ends this at once; the server has been told
        server.send_signal(signal.SIGTERM)
        server.wait()
        if number == signal.SIGTERM:
            os._exit(128 + number)
        os.write(2, f"{PLAIN}\nquire: interrupted\n".encode())  # print may be at work already
        os.kill(os.getpid(), number)  # so that a calling shell knows

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(done: Completion, first_s: float, total_s: float) -> None:
    """What the cache did, in one line."""
    rate = (done.usage.completion_tokens - 1) / max(total_s - first_s, 1e-9)
    cached = f", {done.usage.cached_tokens} of them from the prefix cache" if done.usage.cached_tokens else ""
    print(
        f"{DIM}  {done.usage.prompt_tokens} prompt tokens{cached}; first token after {first_s * 1000:.0f} ms, then {rate:.0f} tokens/s\n"
        f"  KV cache: {done.kv.blocks_peak} blocks at most, {done.kv.blocks_shared_peak} of them shared, "
        f"{done.kv.copies_on_write} copied on write, {done.kv.waste_percent:.1f} % of the slots unused{PLAIN}",
        flush=True,
    )


def question(name: str) -> str:
    return f" What is the pass key of {name}? The pass key of {name} is"


def show(client: Client, pages: str) -> bool:
    """The three parts of the demo. True if the planted facts were found."""
    model = client.model()
    print(f"{model.name}: {model.architecture}, {model.max_context_tokens} tokens of context, on {model.device}")
    planted = f"<|endoftext|>The pass key of {NAME} is {KEY}. The pass key of {OTHER_NAME} is {OTHER_KEY}. {pages}"
    answer = {"max_tokens": 8, "temperature": 0.0, "stop": ["."], "special_as_text": False}
    needed = answer["max_tokens"] + max(len(client.tokenize(planted + question(name), special_as_text=False)) for name in (NAME, OTHER_NAME))
    if needed > model.max_context_tokens:
        sys.exit(f"quire: the demo needs {needed} tokens of context with the tokenizer of {model.name}; this model has {model.max_context_tokens}")

    heading(f"A fact at the start of {len(pages) // 1000} kB of text, asked for at its end")
    print(f"{DIM}...{pages[-100:]}{PLAIN}{question(NAME)}{BOLD}", end="", flush=True)
    cold, cold_first, cold_total = stream(client, planted + question(NAME), **answer)
    describe(cold, cold_first, cold_total)

    heading("Another question about the same text: its KV blocks are still there")
    print(f"{DIM}...{PLAIN}{question(OTHER_NAME)}{BOLD}", end="", flush=True)
    warm, warm_first, warm_total = stream(client, planted + question(OTHER_NAME), **answer)
    describe(warm, warm_first, warm_total)
    print(f"{DIM}  first token {cold_first / max(warm_first, 1e-9):.1f} times sooner than the first time{PLAIN}")

    heading("A story, word by word")
    story, first, total = stream(client, "<|endoftext|>Once upon a time", max_tokens=60, temperature=0.7, seed=7, special_as_text=False)
    describe(story, first, total)

    heading("Four samples of one prompt: stored once, copied where they part")
    start = time.perf_counter()
    four = client.generate("<|endoftext|>" + pages[:2000] + " Once upon a time, there was a little", n=4, max_tokens=24, temperature=0.8, seed=1, special_as_text=False).result()
    for output in four.outputs:
        print(f"  {output.index + 1}. Once upon a time, there was a little{output.text}".replace("\n", " "))
    describe(four, (four.timings.first_token_ms or 0) / 1000, time.perf_counter() - start)

    load = client.load()
    heading("What the cache did in all")
    print(f"  {load.blocks_total} blocks of {load.block_tokens} tokens ({load.kv_bytes_total / 2**20:.0f} MiB): "
          f"{load.blocks_cached} cached, {load.blocks_held} held, {load.blocks_free} free")
    counted = {name: count for name, count in sorted(load.totals.items()) if count}
    for name, count in counted.items():
        print(f"  {name:28} {count}")
    print(f"{DIM}  and {len(load.totals) - len(counted)} counters of what this demo does not do, from preemption to the disk tier, that are 0{PLAIN}")
    return KEY in cold.text and OTHER_KEY in warm.text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the quire binary")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    args = parser.parse_args()
    pages = (ROOT / "models" / "demo_text.txt").read_text().replace("\n", " ").strip()
    with step(f"load {args.model.name} and start the server"):
        server, address = start_server(args.binary, args.model)
    try:
        with ended_by_signals(server), Client(address) as client:
            found = show(client, pages)
    finally:
        with step("drain the server"):
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
    heading(f"The server drained and ended with exit code {server.returncode}.")
    print("Next: ./quire serve --model models/demo --port 50051, and README.md for calling it.")
    return 0 if found and server.returncode == 0 else 1


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not without its server
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{PLAIN}\nquire: interrupted", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # so that a calling shell knows
    except BrokenPipeError:  # a pager that was left, `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered still goes somewhere at the end
        sys.exit(1)
    except QuireError as error:
        sys.exit(f"{PLAIN}\nquire: the demo's server gave up: {error}")
