"""benchmarks/serving/streams.py and refusals.py measure what they say they do."""

from __future__ import annotations

import json
import subprocess
import sys

from conftest import BINARY, MODEL, ROOT

SCRIPT = ROOT / "benchmarks" / "serving" / "streams.py"


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_every_stream_is_counted(tmp_path):
    out = tmp_path / "streams.json"
    done = run("--binary", BINARY, "--model", MODEL, "--streams", 6, "--rounds", 2, "--new-tokens", 5, "--idle-requests", 2, "--output", out)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert (result["num_prompts"], result["completed"], result["failed"]) == (12, 12, 0)
    assert result["total_output_tokens"] == 60 and result["total_input_tokens"] == 12 * 64
    assert [row["blocks_held_after"] for row in result["rounds"]] == [0, 0]
    assert 0 < result["median_ttft_ms"] <= result["p99_ttft_ms"] <= result["max_e2el_ms"]


def test_refused_streams_are_counted_and_fail_the_run(tmp_path):
    out = tmp_path / "streams.json"
    done = run(
        "--binary", BINARY, "--model", MODEL, "--streams", 8, "--rounds", 1, "--new-tokens", 64, "--idle-requests", 1, "--output", out,
        "--", "--max-queued-requests", 1, "--max-sequences", 1,
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    assert result["failed"] > 0 and result["completed"] + result["failed"] == 8
    assert "RESOURCE_EXHAUSTED" in result["errors"][0]


def test_every_refusal_is_one(tmp_path):
    out = tmp_path / "refusals.json"
    script = ROOT / "benchmarks" / "serving" / "refusals.py"
    command = [sys.executable, script, "--binary", BINARY, "--model", MODEL, "--calls", "5", "--streams", "2", "--output", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["cases"]
    assert [(row["case"], row["running_after"]) for row in rows] == [("tenant, idle", 0), ("tenant, busy", 2), ("queue, busy", 2)]
    assert all(0 < row["median_refusal_ms"] <= row["p99_refusal_ms"] <= row["max_refusal_ms"] for row in rows)
