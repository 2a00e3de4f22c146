#!/usr/bin/env python3
"""What clients of a server see: time to first token when it is idle, then many streams at once, through the Python client.

  .venv/bin/python benchmarks/serving/streams.py --model models/demo --streams 256 --output streams.json

The client needs grpcio, which `./quire` has put into .venv.

Starts `quire serve` itself (flags after `--` go to it), or talks to one that runs (--address). Idle: one request at a time, a fresh prompt each, for each
of --idle-prompt-tokens. Load: --rounds rounds, each sends all streams at once and waits for the last. Prompts are random token ids, so no
round hits what another has cached. Counts what was refused, the longest time a stream stood still after its first token, the blocks held and the server's resident
memory after each round. The client runs on the same machine: its share of the cores is part of the figures.

The JSON has the names of `vllm bench serve` (times in ms, over all rounds), so that tools which read that read this; what is ours alone stands
under "idle" and "rounds". Exit code 1 if a request failed or blocks stayed held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients" / "python" / "src"))
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from quire_client import AsyncClient, QuireError  # noqa: E402  (the path is set above)


@dataclass
class Stream:
    """One request as its client saw it. Seconds."""

    start_s: float
    first_s: float | None = None  # from the start to the first token
    gaps_s: list[float] = field(default_factory=list)  # between events after the first
    total_s: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str = ""


class Server:
    """A `quire serve` of our own, or somebody's at an address."""

    def __init__(self, args: argparse.Namespace):
        self.process: subprocess.Popen | None = None
        self.address: str = args.address
        self.command: list[str] = []
        if self.address:
            return
        self.command = [str(args.binary), "serve", "--model", str(args.model), "--port", "0", *args.flags]
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        ready = re.match(r"READY grpc=(\S+) ", line)
        if not ready:
            sys.exit(f"the server did not start: {' '.join(self.command)}; without 2>/dev/null it says why")
        self.address = ready.group(1)

    def resident_mib(self) -> float | None:
        """None where the server is not ours."""
        if self.process is None:
            return None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)


async def run_stream(client: AsyncClient, prompt: list[int], new_tokens: int) -> Stream:
    stream = Stream(time.perf_counter(), prompt_tokens=len(prompt))
    last = None
    try:
        async for event in client.generate(prompt, max_tokens=new_tokens, ignore_eos=True, temperature=0.0):
            now = time.perf_counter()
            if event.token_ids and last is None:
                stream.first_s = now - stream.start_s
            elif event.token_ids:
                stream.gaps_s.append(now - last)
            last = now
            stream.new_tokens += len(event.token_ids)
    except QuireError as error:
        stream.error = f"{error.code.name}: {error}"
    stream.total_s = time.perf_counter() - stream.start_s
    return stream


def spread(values: list[float], name: str) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles of seconds, as milliseconds."""
    if not values:
        return {}
    ms = sorted(1e3 * value for value in values)

    def percentile(share: float) -> float:
        return ms[min(len(ms) - 1, int(share * len(ms)))]

    return {
        f"mean_{name}_ms": statistics.fmean(ms),
        f"median_{name}_ms": statistics.median(ms),
        f"std_{name}_ms": statistics.pstdev(ms),
        f"p90_{name}_ms": percentile(0.90),
        f"p99_{name}_ms": percentile(0.99),
        f"max_{name}_ms": ms[-1],
    }


async def measure_idle(client: AsyncClient, args: argparse.Namespace, prompt_of) -> list[dict]:
    rows = []
    for length in args.idle_prompt_tokens:
        streams = [await run_stream(client, prompt_of(length), 4) for _ in range(args.idle_requests)]
        failed = [stream.error for stream in streams if stream.error]
        if failed:
            sys.exit(f"an idle server refused a prompt of {length} tokens: {failed[0]}")
        rows.append({"prompt_tokens": length, "requests": len(streams), **spread([stream.first_s for stream in streams], "ttft")})
    return rows


async def measure_rounds(client: AsyncClient, server: Server, args: argparse.Namespace, prompt_of) -> tuple[list[Stream], list[dict]]:
    every, rounds = [], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        streams = await asyncio.gather(*(run_stream(client, prompt_of(args.prompt_tokens), args.new_tokens) for _ in range(args.streams)))
        seconds = time.perf_counter() - start
        load = await client.load()
        every += streams
        rounds.append(
            {
                "seconds": seconds,
                "failed": sum(bool(stream.error) for stream in streams),
                "output_tokens_per_s": sum(stream.new_tokens for stream in streams) / seconds,
                "longest_gap_ms": 1e3 * max((gap for stream in streams for gap in stream.gaps_s), default=0.0),
                "blocks_held_after": load.blocks_held,
                "resident_mib_after": server.resident_mib(),
            }
        )
    return every, rounds


def report(args: argparse.Namespace, server: Server, model, streams: list[Stream], idle: list[dict], rounds: list[dict]) -> dict:
    good = [stream for stream in streams if not stream.error]
    duration = sum(row["seconds"] for row in rounds)
    read, written = sum(s.prompt_tokens for s in good), sum(s.new_tokens for s in good)
    a_token = [(s.total_s - s.first_s) / (s.new_tokens - 1) for s in good if s.new_tokens > 1]
    return {
        "date": datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S"),
        "backend": "quire",
        "model_id": model.name,
        "version": model.version,
        "device": model.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": " ".join(sys.argv),
        "server_command": " ".join(server.command),
        "num_prompts": len(streams),
        "max_concurrency": args.streams,
        "duration": duration,
        "completed": len(good),
        "failed": len(streams) - len(good),
        "total_input_tokens": read,
        "total_output_tokens": written,
        "request_throughput": len(good) / duration,
        "output_throughput": written / duration,
        "total_token_throughput": (read + written) / duration,
        **spread([s.first_s for s in good], "ttft"),
        **spread(a_token, "tpot"),
        **spread([gap for s in good for gap in s.gaps_s], "itl"),
        **spread([s.total_s for s in good], "e2el"),
        "errors": sorted({s.error for s in streams if s.error}),
        "idle": idle,
        "rounds": rounds,
    }


def show(result: dict, resident_before: float | None) -> None:
    for row in result["idle"]:
        print(
            f"idle, {row['prompt_tokens']} tokens of prompt: first token after {row['median_ttft_ms']:.1f} ms "
            f"(p99 {row['p99_ttft_ms']:.1f}; {row['requests']} requests)"
        )
    print(f"{result['max_concurrency']} streams at once:")
    print("  round  seconds  failed  tokens/s  longest gap ms  blocks held after  resident MiB after")
    for number, row in enumerate(result["rounds"], 1):
        resident = "-" if row["resident_mib_after"] is None else f"{row['resident_mib_after']:.0f}"
        print(
            f"  {number:5d}  {row['seconds']:7.2f}  {row['failed']:6d}  {row['output_tokens_per_s']:8.0f}  {row['longest_gap_ms']:14.0f}  "
            f"{row['blocks_held_after']:17d}  {resident:>18}"
        )
    if resident_before is not None:
        print(f"  resident before the first round: {resident_before:.0f} MiB")
    if result["completed"]:
        print(f"  first token: median {result['median_ttft_ms']:.0f} ms, p99 {result['p99_ttft_ms']:.0f}; a token: median {result['median_tpot_ms']:.1f} ms")
    for error in result["errors"]:
        print(f"  refused: {error}")


async def measure(args: argparse.Namespace, server: Server) -> int:
    rng = random.Random(args.seed)
    async with AsyncClient(server.address) as client:
        await client.wait_ready()
        model = await client.model()

        def prompt_of(length: int) -> list[int]:
            return [rng.randrange(model.vocab_size) for _ in range(length)]

        for _ in range(3):  # the first calls open connections and touch memory
            await run_stream(client, prompt_of(16), 4)
        idle = await measure_idle(client, args, prompt_of)
        before = server.resident_mib()
        streams, rounds = await measure_rounds(client, server, args, prompt_of)
        result = report(args, server, model, streams, idle, rounds)
    result["resident_mib_before"] = before
    show(result, before)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["failed"] > 0 or any(row["blocks_held_after"] for row in rounds))


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "release" / "quire")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--address", default="", help="a server that runs already, HOST:PORT; none is started then")
    parser.add_argument("--streams", type=positive, default=256)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--prompt-tokens", type=positive, default=64)
    parser.add_argument("--new-tokens", type=positive, default=64)
    parser.add_argument("--idle-prompt-tokens", type=positive, nargs="+", default=[7, 128])
    parser.add_argument("--idle-requests", type=positive, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    ours, flags = (sys.argv[1:], []) if "--" not in sys.argv else (sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :])
    args = parser.parse_args(ours)
    args.flags = flags
    server = Server(args)
    try:
        return asyncio.run(measure(args, server))
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
