#!/usr/bin/env python3
"""The suite for a card without a card: its table on figures made up here, its refusals, and a dry run of every part on the host
shim, which must leave every part's results in suite.json. No figure is compared with a clock."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks/suite"))
import run  # noqa: E402
import table  # noqa: E402
import workloads  # noqa: E402

SUITE = ROOT / "benchmarks/gpu_suite.sh"


def expect(what: str, got, wanted) -> list[str]:
    return [] if got == wanted else [f"{what}: got {got!r}, wanted {wanted!r}"]


def line(part: str, name: str, rounds_us: list[float], **more) -> dict:
    return {"part": part, "name": name, "rounds_us": rounds_us, **more}


def made_up_results() -> dict:
    """Two passes of ours and of two peers on one decode shape, one product, and one engine workload."""
    ours, peers = run.Merged(), run.Merged()
    for us in (100.0, 102.0):
        ours.add([line("decode", "64x1024 32/8", [us, us, us + 30], roof_us=96.0, error=us / 1e5),
                  line("cascade", "256x(32768+256)", [us]), line("cascade", "256x(32768+256) one by one", [us * 25]),
                  line("matmul", "step at 1 rows", [us * 60], roof_us=5000.0)])
        peers.add([line("decode", "64x1024 32/8", [us + 10], peer="FlashInfer paged"), line("decode", "64x1024 32/8", [us - 10], peer="cuDNN")])
    workload = {"name": "batch 1", "ms_per_decode_step": 5.2, "decode_steps": 127, "batch": 1, "n": 1, "prompt_tokens": 128, "new_tokens": 128,
                "shared_prefix_tokens": 0, "weight_bytes": 15e9, "kv_bytes_per_token": 131072, "start_to_first_token_ms": 12000.0,
                "host_us_per_step": 50.0, "rounds": [{"ms_per_decode_step": 5.1}, {"ms_per_decode_step": 5.3}]}
    parts = {
        "kernels": {"card": {"name": "H100", "read_gb_per_s": 3000, "copy_gb_per_s": 3000, "matmul_tflops": 780}, "ours": ours.lines(),
                    "peers": peers.lines(), "peers_absent": {"vllm": "no"}, "seconds": 1},
        "engine-8b": {"workloads": [workload], "seconds": 1},
        "engine-0.6b": {"workloads": [], "idle": [{"device_idle_us_per_step": us} for us in (5.0, 12.0)], "seconds": 1},
        "peer-engines": {"lines": [{"what": "8B batch 1, step", "peer": "vLLM", "value": 6.5}], "seconds": 1},
    }
    return {"parts": parts, "left_out": {"lists": "no time"}, "dry_run": False,
            "machine": {"card": "", "commit": "c", "changed": False, "date": "d"}}


def check_table() -> list[str]:
    results = made_up_results()
    rows = {row.what: row for row in table.kernel_rows(table.Results(results)) + table.engine_rows(table.Results(results))}
    decode, flashinfer = rows["decode attention 64x1024"], rows["  the same 64x1024, FlashInfer"]
    step, first = rows["8B batch 1, step"], rows["8B start to first token"]
    text = table.render(results)
    return [
        *expect("median of both passes", decode.value, 102.0),
        *expect("spread of both passes", round(decode.spread, 4), round((132 - 100) / 102, 4)),
        *expect("spread of an engine's rounds", round(step.spread, 4), round(0.2 / 5.2, 4)),
        *expect("few rounds are said", "8B batch 1, step (2 rounds)" in text and text.count("rounds)") == 1, True),
        *expect("worst error", table.Results(results).ours("decode", "64x1024 32/8")["error"], 102.0 / 1e5),
        *expect("share of the bare read", round(decode.share, 4), round(96 / 102, 4)),
        *expect("verdict under the floor", decode.verdict(), "SHORT"),
        *expect("best peer", (decode.peer, round(decode.ratio, 3)), ("cuDNN", round(91 / 102, 3))),
        *expect("named peer", (flashinfer.peer, round(flashinfer.ratio, 3)), ("FlashInfer paged", round(111 / 102, 3))),
        *expect("verdict between floor and target", flashinfer.verdict(), "floor"),
        *expect("cascade", (rows["shared prefix 256x(32768+256), x one by one"].value, rows["shared prefix 256x(32768+256), x one by one"].verdict()),
                (25.0, "floor")),
        *expect("product", rows["products of an 8B step at 1 rows"].verdict(), "SHORT"),
        *expect("a time under its floor", step.verdict(), "floor"),
        *expect("roof of a step", round(step.share, 3), round((15e9 + 192 * 131072) / 3e12 * 1e3 / 5.2, 3)),
        *expect("peer engine", (step.peer, round(step.ratio, 2)), ("vLLM", 1.25)),
        *expect("seconds", (first.value, first.verdict()), (12.0, "SHORT")),
        *expect("idle between steps, the worst", (rows["GPU idle between steps, at most"].value, rows["GPU idle between steps, at most"].verdict()), (12.0, "floor")),
        *expect("what did not run", rows["decode attention 1x1024"].verdict(), "not measured"),
        *expect("left out is said", "lists left out: no time" in text, True),
        *expect("sound results", run.broken(results), False),
    ]


def check_broken() -> list[str]:
    """Each kind of fault must fail the run."""
    faults = {
        "a failed test": ("tests", {"golden_device": {"passed": 3, "failed": 1, "skipped": 0}}),
        "a sanitizer's finding": ("sanitize", {"racecheck": {"step": 99}}),
        "a part that ended early": ("lists", {"failed": "quire-offline ended with 1"}),
        "a wrong result": ("attention", {"ours": [line("decode", "x", [1.0], wrong=True)]}),
    }
    return [f"{name} did not fail the run" for name, (part, found) in faults.items() if not run.broken({"parts": {part: found}})]


def check_counts() -> list[str]:
    """A program of tests that ran none of them has failed, whatever its status; skipped ones will do only where there is no card."""
    report = '<testsuites><testsuite>{}</testsuite></testsuites>'
    ran, skipped, not_run = '<testcase status="run"/>', '<testcase status="run"><skipped/></testcase>', '<testcase status="notrun"/>'
    found = []
    for name, cases, dry, failed in (("passed", ran, False, 0), ("one skipped", ran + skipped, False, 0), ("all skipped without a card", skipped, True, 0),
                                     ("all skipped on a card", skipped, False, 1), ("a filter that matches nothing", not_run, True, 1),
                                     ("no test at all", "", False, 1)):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "some_test"
            program.write_text(f"#!/bin/sh\nprintf '%s' '{report.format(cases)}' > \"${{GTEST_OUTPUT#xml:}}\"\n")
            program.chmod(0o755)
            tests = run.Suite(argparse.Namespace(out=Path(folder), binaries=Path(folder), shared=Path(folder), dry_run=dry, only=[]))
            tests.deadline = time.monotonic() + 20
            found += expect(f"failed of {name}", tests.gtest("some_test", [])["failed"], failed)
            program.rename(program.with_name("golden_device_traffic"))
            found += expect(f"under a sanitizer, {name}", tests.traffic_status([], "engine.log"), failed)
    return found


def check_seconds() -> list[str]:
    """The three minutes of a part that --only names, 75 s after the start of a run that built."""
    found = []
    for only, wanted in ((["tests", "sanitize", "lists"], {"tests": 105, "sanitize": 105, "lists": 180}), (["lists", "tests"], {"lists": 105, "tests": 180})):
        named = run.Suite(argparse.Namespace(out=Path(), binaries=Path(), shared=Path(), dry_run=False, only=only))
        for part, seconds in wanted.items():
            found += expect(f"seconds of {part} of {only}", round(named.seconds_of_named(part, time.time() - 75)), seconds)
    return found


def check_offline_list() -> list[str]:
    rows = workloads.offline_list()
    return expect("the offline list", (len(rows), rows[0], sum(p for p, _ in rows), sum(o for _, o in rows)), (256, (964, 845), 142827, 133966))


def suite(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(SUITE), "--python", sys.executable, *arguments], capture_output=True, text=True, timeout=850)


def check_refusals(build: Path) -> list[str]:
    found = []
    for arguments, said in (
        (["--dry-run"], "name a build directory with --prebuilt"),
        (["--fast"], "unknown option '--fast'"),
        (["--only"], "--only needs a value"),
        (["--dry-run", "--prebuilt", "/no/such"], "--prebuilt /no/such: no such folder"),
        (["--dry-run", "--prebuilt", str(build), "--only", "tests,speed"], "--only names speed; the parts are tests"),
    ):
        done = suite("--out", str(build / "gpu_suite_refusals"), *arguments)
        found += expect(f"status of {arguments}", done.returncode, 2)
        found += [] if said in done.stderr else [f"{arguments}: wanted `{said}`, it said `{done.stderr.strip()[-300:]}`"]
    return found


def check_dry_run(build: Path, shared: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        done = suite("--dry-run", "--prebuilt", str(build), "--out", folder, "--shared", str(shared))
        if done.returncode != 0:
            return [f"the dry run ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}"]
        results = json.loads((Path(folder) / "suite.json").read_text())
    parts = results["parts"]
    found = expect("parts", list(parts), list(run.PARTS))
    kernels = {ours["part"] for ours in parts["kernels"]["ours"] + parts["attention"]["ours"]}
    found += expect("kernels", kernels, {"ceiling", "matmul", "rows", "sampling", "decode", "prefill", "cascade", "sides"})
    found += [f"{ours['name']}: not checked" for ours in parts["kernels"]["ours"] if ours["part"] != "ceiling" and "error" not in ours]
    for part, wanted in workloads.WORKLOADS.items():
        found += expect(f"workloads of {part}", [w["name"] for w in parts[part]["workloads"]], [w["name"] for w in wanted])
    found += expect("what the cache gave", parts["engine-8b"]["workloads"][4]["cached_tokens"] > 0, True)
    return found + expect("the table", "DRY RUN" in done.stdout and "SHORT" not in done.stdout, True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    args = parser.parse_args()
    problems = check_table() + check_broken() + check_counts() + check_seconds() + check_offline_list() + check_refusals(args.build) + check_dry_run(args.build, args.shared)
    print("\n".join(problems) or "the suite's table, refusals and dry run hold")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
