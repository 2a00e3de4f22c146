#!/usr/bin/env python3
"""Replays production traces through `quire bench sim` and draws what came out: hit rate against memory, latency and goodput against load.

  benchmarks/sim/study.py --quire build/release/quire --traces DIR --output benchmarks/results/sim_study.json [--part eviction|load|plots]

DIR holds the traces under their names in TRACES. Beside the JSON come sim_hit_rate.svg and sim_load_*.svg. A simulated second is the
roofline's of the named card and model, not a measured one; hit rates are the real cache's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
except ImportError:
    plt = None

TRACES = {
    "mooncake": "mooncake_conversation.jsonl.gz",
    "azure": "azure_llm_2023_conv.csv",
    "servegen": "servegen_deepseek-r1.tar.gz",
}
KV_BYTES = [200e9, 400e9, 800e9, 1.6e12, 3.2e12]
ORDERS = [("lru", "block"), ("lru", "token"), ("pgdsf", "token"), ("oracle", "token")]  # eviction, prefix rule
LABELS = {
    ("lru", "block"): "LRU, whole-block hits (vLLM's rule)",
    ("lru", "token"): "LRU",
    ("pgdsf", "token"): "PGDSF",
    ("oracle", "token"): "Belady on leaves (knows the future)",
}
SPEEDS = {"azure": [1, 2, 3, 4, 5, 6, 8], "servegen": [0.05, 0.1, 0.2, 0.3, 0.5, 1]}


class Study:
    def __init__(self, options: argparse.Namespace):
        self.options = options

    def replay(self, trace: str, flags: dict) -> dict:
        command = ["bench", "sim", "--trace", str(self.options.traces / TRACES[trace]), "--trace-format", trace, "--faults", "off"]
        command += ["--sequences", "256", "--audit-every", "100000", "--output", "json"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        done = subprocess.run([str(self.options.quire), *command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"quire {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        report = json.loads(done.stdout)
        print(f"{trace} {flags}: hit rate {report['hit_rate']:.4f}, goodput {report['goodput_per_s']:.2f}/s", flush=True)
        return {"trace": trace, **flags, **report}

    def replay_all(self, runs: list[tuple[str, dict]]) -> list[dict]:
        with ThreadPoolExecutor(self.options.jobs) as pool:
            return list(pool.map(lambda run: self.replay(*run), runs))

    def eviction(self) -> list[dict]:
        runs = [
            ("mooncake", {"kv-bytes": int(size), "eviction": order, "prefix-rule": rule})
            for size in KV_BYTES
            for order, rule in ORDERS
        ]
        return self.replay_all(runs)

    def load(self) -> list[dict]:
        return self.replay_all([(trace, {"speed": speed}) for trace, speeds in SPEEDS.items() for speed in speeds])


def finish(figure, axes, path: Path, legend: str) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc=legend)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_eviction(rows: list[dict], folder: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for (order, rule), style in zip(ORDERS, ("v:", "o-", "s-", "k--"), strict=True):
        points = sorted((r["kv-bytes"], r["hit_rate"]) for r in rows if (r["eviction"], r["prefix-rule"]) == (order, rule))
        axes.plot([x / 1e9 for x, _ in points], [100 * y for _, y in points], style, label=LABELS[order, rule], markersize=4)
    axes.set_xscale("log")
    axes.set_xticks([x / 1e9 for x in KV_BYTES], [f"{x / 1e9:g}" for x in KV_BYTES])
    axes.set_xlabel("KV cache, GB (Llama 3.1 8B, bf16)")
    axes.set_ylabel("prompt tokens found cached, %")
    axes.set_title("Mooncake conversation trace: 12,031 requests of one hour")
    finish(figure, axes, folder / "sim_hit_rate.svg", "lower right")


def draw_load(rows: list[dict], trace: str, folder: Path) -> None:
    rows = [r for r in rows if r["trace"] == trace]
    figure, (latency, rate) = plt.subplots(1, 2, figsize=(10, 4))
    speeds = [r["speed"] for r in rows]
    for name, field, color in (("first token", "ttft_ms", "C0"), ("later tokens", "tpot_ms", "C1")):
        for quantile, style in (("p50", "o-"), ("p99", "o:")):
            latency.plot(speeds, [r[field][quantile] for r in rows], style, color=color, markersize=4, label=f"{name} {quantile}")
    latency.set_yscale("log")
    latency.set_ylabel("ms")
    latency.set_xlabel("speed of the trace")
    latency.grid(alpha=0.3)
    latency.legend(frameon=False)
    rate.plot(speeds, [r["requests_per_s"] for r in rows], "o-", color="C2", label="finished")
    rate.plot(speeds, [r["goodput_per_s"] for r in rows], "s-", color="C3", label="of these within 1 s to first token and 50 ms a token")
    rate.set_ylim(0, 1.25 * max(r["requests_per_s"] for r in rows))
    rate.set_xlabel("speed of the trace")
    rate.set_ylabel("requests a second")
    figure.suptitle(f"{trace} trace, Llama 3.1 8B on one simulated H100")
    finish(figure, rate, folder / f"sim_load_{trace}.svg", "upper left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quire", type=Path, required=True)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", choices=["eviction", "load", "plots"], help="plots: of what the output has; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at once")
    options = parser.parse_args()
    study = Study(options)
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    if options.part != "plots":
        report["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for part in ("eviction", "load"):
        if options.part in (None, part):
            report[part] = getattr(study, part)()
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    if plt is None:
        print("no plots: matplotlib is not installed")
        return
    if "eviction" in report:
        draw_eviction(report["eviction"], options.output.parent)
    if "load" in report:
        for trace in SPEEDS:
            draw_load(report["load"], trace, options.output.parent)


if __name__ == "__main__":
    main()
