#!/usr/bin/env python3
"""How soon a server says no: the time from a call to its RESOURCE_EXHAUSTED, one call after the other, while it is idle and while it works.

  .venv/bin/python benchmarks/serving/refusals.py --output refusals.json

Starts `quire serve` for each case (flags after `--` go to it), and asks --calls times what must be refused:
  tenant, idle    a tenant whose requests of this minute are all made, nothing running
  tenant, busy    the same, while --streams requests of others run
  queue, busy     a queue that is full, while --streams requests run
Beside each, health checks the same number of times: what any call costs through this client on this machine. The client runs on the same machine.
`load` is the machine's load average before each case: on one that is busy with other things these are no figures of the server's.
Exit code 1 if a call was not refused.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from streams import ROOT, Server, positive, spread  # noqa: E402  (the path is set above; it sets the client's)

import grpc  # noqa: E402
from quire_client import Client, QuireError  # noqa: E402

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
MANY_TOKENS = 3900
QUEUED = 2


def start_stream(client: Client, stack: ExitStack, tenant: str) -> None:
    """A request that runs on. Its events wait at the server, so that reading them is no work of this process beside the calls."""
    stream = stack.enter_context(client.generate([5] * 32, max_tokens=MANY_TOKENS, ignore_eos=True, temperature=0.0, tenant=tenant))
    next(stream)


def time_of(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def refuse(client: Client) -> None:
    try:
        client.generate([5], max_tokens=1, tenant="asks").result()
    except QuireError as error:
        if error.code == FULL:
            return
        raise
    raise SystemExit("a call was taken that had to be refused")


def fill_queue(client: Client, stack: ExitStack, waiting: int) -> None:
    for number in range(waiting):
        stack.enter_context(client.generate([5] * 32, max_tokens=MANY_TOKENS, ignore_eos=True, tenant=f"waits{number}"))
    while client.load().requests_waiting < waiting:
        time.sleep(0.01)


def measure(client: Client, calls: int) -> dict:
    gc.collect()
    gc.disable()  # the client's own pauses are no part of the figures
    try:
        for _ in range(20):
            refuse(client)
        refused = [time_of(lambda: refuse(client)) for _ in range(calls)]
        health = [time_of(client.is_ready) for _ in range(calls)]
    finally:
        gc.enable()
    return {**spread(refused, "refusal"), **spread(health, "health")}


def run_case(args: argparse.Namespace, name: str, busy: bool, flags: list[str]) -> dict:
    args.flags = [*flags, *args.extra]
    load = os.getloadavg()[0]
    server = Server(args)
    try:
        with Client(server.address) as client, Client(server.address) as others, ExitStack() as stack:
            client.wait_ready()
            for number in range(args.streams if busy else 0):
                start_stream(others, stack, f"other{number}")
            if "--max-queued-requests" in flags:
                fill_queue(others, stack, QUEUED)
            else:
                client.generate([5], max_tokens=1, tenant="asks").result()  # the one that it may make
            row = {"case": name, "load": load, "calls": args.calls, **measure(client, args.calls)}
            row["running_after"] = client.load().sequences_running
    finally:
        server.stop()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "release" / "quire")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--calls", type=positive, default=2000)
    parser.add_argument("--streams", type=positive, default=4)
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    ours, extra = (sys.argv[1:], []) if "--" not in sys.argv else (sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :])
    args = parser.parse_args(ours)
    args.extra, args.address = extra, ""
    tenant = ["--max-tenant-requests-per-minute", "1"]
    queue = ["--max-queued-requests", str(QUEUED), "--max-sequences", str(args.streams)]
    rows = [
        run_case(args, "tenant, idle", False, tenant),
        run_case(args, "tenant, busy", True, tenant),
        run_case(args, "queue, busy", True, queue),
    ]
    for row in rows:
        print(
            f"{row['case']:14} refusal median {row['median_refusal_ms']:.2f} ms, p99 {row['p99_refusal_ms']:.2f}, max {row['max_refusal_ms']:.1f}; "
            f"health median {row['median_health_ms']:.2f}, p99 {row['p99_health_ms']:.2f}  "
            f"({row['running_after']} running after; load {row['load']:.1f})"
        )
    if args.output:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        args.output.write_text(json.dumps({"date": date, "machine": machine, "command": " ".join(sys.argv), "cases": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
