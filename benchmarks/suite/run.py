#!/usr/bin/env python3
"""The driver behind benchmarks/gpu_suite.sh: runs the parts, keeps to the time, writes suite.json and the table.

Ours and the peers' kernel programs alternate: one pass of ours, one of theirs, and again; a figure is the median of the rounds of
all passes. Only the standard library is needed here; the peers bring their own.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import table  # noqa: E402
import workloads  # noqa: E402

WHOLE_RUN_S, ONE_PART_S = 540, 180
# Expected seconds on an H100: in the default form a part starts only if so much is left, and is cut off at half as much again.
PARTS = {
    "tests": 100,
    "sanitize": 100,
    "kernels": 60,
    "attention": 65,
    "engine-8b": 85,
    "engine-0.6b": 35,
    "engine-13b": 30,
    "lists": 80,
    "peer-engines": 35,
}
# Neither is timed, and both are slow on the host, not on the card. One deadline is for both: they expect the same time.
AT_ONCE = ("tests", "sanitize")
FIVE_LISTS_S = 160  # what five rounds of both lists take
DRY_PART_S = 850  # on a busy machine
PASSES, ROUNDS = 2, 5
TESTS_AT_ONCE = 4
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")


class Suite:
    def __init__(self, args: argparse.Namespace):
        self.args, self.dry = args, args.dry_run
        self.saving = threading.Lock()
        self.out = args.out.resolve()
        self.device = "cuda-host" if self.dry else "cuda"
        self.results = {"machine": machine(), "dry_run": args.dry_run, "parts": {}, "left_out": {}}
        self.deadline = 0.0

    # ---- programs ------------------------------------------------------------------------------------------------------------
    def program(self, name: str) -> str:
        """In a folder of programs, or where a build directory has it."""
        for folder in ("", "benchmarks/cuda", "benchmarks/offline", "tests"):
            path = self.args.binaries / folder / name
            if path.exists():
                return str(path.resolve())
        raise RuntimeError(f"{self.args.binaries} holds no {name}")

    def run(self, command: list[str], log: str, environment: dict[str, str] | None = None) -> int:
        """Runs to its end or the part's deadline; output goes to OUT/log. The exit status, 124 past the deadline."""
        left = max(1.0, self.deadline - time.monotonic())
        with open(self.out / log, "a") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, stdin=subprocess.DEVNULL,
                                       env={**os.environ, **(environment or {})}, start_new_session=True)
            try:
                return process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                # With what it started: a program left under a sanitizer would go on beside what is measured next.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                file.write(f"\nended after {left:.0f} s: the part's time was up\n")
                return 124

    def must_run(self, command: list[str], log: str) -> None:
        status = self.run(command, log)
        if status != 0:
            raise RuntimeError(f"{Path(command[0]).name} ended with {status} (log: {log}): {last_line(self.out / log)}")

    # ---- parts -----------------------------------------------------------------------------------------------------------------
    def part_tests(self) -> dict:
        # The longest first: a part's end cuts off what began last.
        programs = {"golden_cascade": ["--gtest_filter=*WaitsForEnough*"] if self.dry else [],
                    "golden_device": ["--gtest_filter=*AloneTogether*/stories260K:*Preempted*/stories260K"] if self.dry else [],
                    "golden_device_noise": ["--gtest_filter=*SamePlans*"] if self.dry else [],
                    "cuda_matmul_card_test": [],
                    "golden_device_traffic": [],
                    "cuda_device_test": [],
                    "golden_device_calls": [],
                    "golden_device_faults": [],
                    "golden_device_paths": ["--gtest_filter=*Beams*"] if self.dry else [],
                    "golden_device_sampling": ["--gtest_filter=*GoesOn*"] if self.dry else [],
                    "golden_device_tables": [],
                    "golden_retention": ["--gtest_filter=*SamplesOwn*"] if self.dry else [],
                    "cuda_attention_card_test": []}
        # Side by side: none is timed, and each keeps the card busy for a small part of its time.
        with concurrent.futures.ThreadPoolExecutor(1 if self.dry else TESTS_AT_ONCE) as pool:
            run = {name: pool.submit(self.gtest, name, arguments, log=f"{name}.log") for name, arguments in programs.items()}
            return {name: result.result() for name, result in run.items()}

    def gtest(self, name: str, arguments: list[str], prefix: list[str] = (), log: str = "tests.log") -> dict:
        report = self.out / f"{name}-{Path(log).stem}.xml"
        report.unlink(missing_ok=True)
        environment = {"QUIRE_TEST_DEVICE": self.device, "QUIRE_ROOT": str(ROOT), "QUIRE_SHARED": str(self.args.shared.resolve()),
                       "QUIRE_NOISE_RUNS": "2" if self.dry else "5", "QUIRE_TRAFFIC_S": "1" if prefix or self.dry else "10",
                       "QUIRE_TRAFFIC_SHORT": "1" if prefix else "0", "GTEST_OUTPUT": f"xml:{report}"}
        status = self.run([*prefix, self.program(name), *arguments], log, environment)
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        if report.exists():
            for case in ElementTree.parse(report).getroot().iter("testcase"):
                failed, skipped = case.find("failure") is not None, case.find("skipped") is not None
                if case.get("status") != "notrun":
                    counts["failed" if failed else "skipped" if skipped else "passed"] += 1
        # A filter that matches nothing ends with 0; so does, on a card, a program that found none and skipped.
        nothing = not counts["passed"] and not (counts["skipped"] and self.dry)
        if (status != 0 or nothing) and not counts["failed"]:
            counts["failed"] = 1
        return {**counts, "status": status}

    def part_sanitize(self) -> dict:
        """Every kernel of the small shapes of the benchmarks, which check their results, and a second of random traffic."""
        sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if sanitizer is None and not self.dry:
            raise RuntimeError("no compute-sanitizer on PATH or in /usr/local/cuda/bin")
        tools = SANITIZER_TOOLS[: 1 if self.dry else None]
        with concurrent.futures.ThreadPoolExecutor(3 * len(tools)) as pool:
            running = {tool: self.sanitized(pool, sanitizer, tool) for tool in tools}
            return {tool: {what: status.result() for what, status in runs.items()} for tool, runs in running.items()}

    def sanitized(self, pool: concurrent.futures.Executor, sanitizer: str | None, tool: str) -> dict[str, concurrent.futures.Future]:
        prefix = [] if self.dry else [sanitizer, "--tool", tool, "--error-exitcode", "99"]
        tiny = ["--device", self.device, "--tiny", "--rounds", "1"]
        return {
            "step": pool.submit(self.run, [*prefix, self.program("quire_cuda_step_bench"), *tiny], f"{tool}-step.log"),
            "attention": pool.submit(self.run, [*prefix, self.program("quire_cuda_attention_bench"), *tiny], f"{tool}-attention.log"),
            "engine": pool.submit(lambda: self.traffic_status(prefix, f"{tool}-engine.log")),
        }

    def traffic_status(self, prefix: list[str], log: str) -> int:
        run = self.gtest("golden_device_traffic", [], prefix, log)
        return run["status"] or int(run["failed"] > 0)  # it ends with 0 too when it skipped

    def part_kernels(self) -> dict:
        return self.beside_peers("step", ["quire_cuda_step_bench"])

    def part_attention(self) -> dict:
        ceiling = self.results["parts"].get("kernels", {}).get("card", {}).get("matmul_tflops", 0)
        return self.beside_peers("attention", ["quire_cuda_attention_bench", "--part", "decode,prefill,cascade,sides", "--q-heads", "32",
                                               "--head-dims", "128", "--pool-gib", "40", "--matmul-tflops", str(ceiling)])

    def beside_peers(self, kind: str, ours: list[str]) -> dict:
        own, peers, reasons, card = Merged(), Merged(), {}, {}
        rounds = ["--rounds", "1" if self.dry else str(ROUNDS)]
        small = ["--tiny"] if self.dry else []
        for index in range(1 if self.dry else PASSES):
            file = self.out / f"{kind}-{index}.json"
            self.must_run([self.program(ours[0]), *ours[1:], "--device", self.device, "--json", str(file), *rounds, *small], f"{kind}.log")
            lines = json.loads(file.read_text())
            card = card or lines[0]
            own.add(lines[1:])
            theirs = self.out / f"{kind}-peers-{index}.json"
            theirs.unlink(missing_ok=True)
            status = self.run([sys.executable, str(HERE / "peers.py"), "--kind", kind, "--json", str(theirs), *rounds, *small], f"{kind}-peers.log")
            found = json.loads(theirs.read_text()) if theirs.exists() else {"lines": [], "absent": {"all": f"peers.py ended with {status}"}}
            peers.add(found["lines"])
            reasons.update(found["absent"])
        return {"card": card, "ours": own.lines(), "peers": peers.lines(), "peers_absent": reasons}

    def engine(self, part: str, list_of_work: list[dict], shape: str, *flags: str) -> list[dict]:
        file = self.out / f"{part}.workloads.json"
        file.write_text(json.dumps(workloads.shrunk(list_of_work) if self.dry else list_of_work, indent=1))
        # The shim runs a model of two layers of 64: the lines are the same, the sizes are not.
        model = ROOT / ("tests/golden/families/qwen2" if self.dry else f"benchmarks/shapes/{shape}")
        dtype = workloads.DTYPES.get(shape, "bf16")  # said, so that the cache is sized for it
        command = [self.program("quire-offline"), "--model", str(model), "--weights", "random", "--device", self.device, "--dtype", dtype,
                   "--kv-cache-dtype", dtype, "--workloads", str(file), "--output", "json", *flags]
        log = self.out / f"{part}.log"
        log.unlink(missing_ok=True)
        with open(self.out / f"{part}.json", "w") as answer, open(log, "w") as errors:
            left = max(1.0, self.deadline - time.monotonic())
            done = subprocess.run(command, stdout=answer, stderr=errors, timeout=left, cwd=ROOT, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise RuntimeError(f"quire-offline ended with {done.returncode} (log: {log.name}): {last_line(log)}")
        return json.loads((self.out / f"{part}.json").read_text())

    def part_engine(self, part: str) -> dict:
        shape = workloads.SHAPES[part]
        found = {"workloads": self.engine(part, workloads.WORKLOADS[part], shape)}
        if part == "engine-0.6b":  # whose steps leave the host the least time; apart, since its timed events are in the steps
            found["idle"] = self.engine(f"{part}-idle", workloads.IDLE, shape, "--time-device-idle", "--gemm-tuning-ms", "0")
        return found

    def part_lists(self) -> dict:
        path = self.out / "offline_list.csv"
        workloads.write_offline_list(path, scale=64 if self.dry else 1, count=4 if self.dry else 256)
        rounds = 5 if self.args.only and self.deadline - time.monotonic() > FIVE_LISTS_S else 2
        found = {}
        for part in ("engine-8b", "engine-0.6b"):
            one = {**workloads.work("offline list", rounds=rounds), "requests": path.name}
            found[part] = self.engine(f"lists-{part[7:]}", [one], workloads.SHAPES[part])[0]
        return found

    def part_peer_engines(self) -> dict:
        file = self.out / "peer-engines.json"
        file.unlink(missing_ok=True)
        small = ["--tiny"] if self.dry else []
        status = self.run([sys.executable, str(HERE / "peer_engines.py"), "--json", str(file), *small], "peer-engines.log")
        if not file.exists():
            raise RuntimeError(f"peer_engines.py ended with {status}: {last_line(self.out / 'peer-engines.log')}")
        return json.loads(file.read_text())

    # ---- the whole ---------------------------------------------------------------------------------------------------------------
    def run_part(self, part: str, started: float) -> None:
        left = WHOLE_RUN_S - (time.time() - started)
        if not self.args.only and not self.dry and left < PARTS[part]:
            self.results["left_out"][part] = f"{left:.0f} s were left of {WHOLE_RUN_S}; it takes {PARTS[part]}"
            return
        self.deadline = time.monotonic() + (self.seconds_of_named(part, started) if self.args.only or self.dry else min(ONE_PART_S, 1.5 * PARTS[part], left))
        begin = time.monotonic()
        print(f"gpu_suite: {part} ...", file=sys.stderr, flush=True)
        try:
            function = self.part_engine if part.startswith("engine-") else getattr(self, "part_" + part.replace("-", "_"))
            found = function(part) if part.startswith("engine-") else function()
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as fault:
            found = {"failed": str(fault)}
            print(f"gpu_suite: {part}: {fault}", file=sys.stderr)
        found["seconds"] = round(time.monotonic() - begin, 1)
        self.results["parts"][part] = found
        self.save()  # what was measured outlives whatever ends the next part

    def seconds_of_named(self, part: str, started: float) -> float:
        """Of a part that --only names: the build counts to the first, which is two where they run at once."""
        if self.dry:
            return DRY_PART_S
        first = part == self.args.only[0] or {part, self.args.only[0]} <= set(AT_ONCE)
        return ONE_PART_S - (time.time() - started if first else 0)

    def run_all(self) -> None:
        parts = [*(self.args.only or PARTS)]
        together = [part for part in parts if part in AT_ONCE]
        with concurrent.futures.ThreadPoolExecutor(len(AT_ONCE)) as pool:
            list(pool.map(lambda part: self.run_part(part, self.args.started), together))
        self.results["parts"] = {part: self.results["parts"][part] for part in together if part in self.results["parts"]}  # in order
        for part in parts:
            if part not in AT_ONCE:
                self.run_part(part, self.args.started)

    def save(self) -> str:
        with self.saving:
            text = table.render(self.results)
            (self.out / "suite.json").write_text(json.dumps(self.results, indent=1) + "\n")
            (self.out / "table.txt").write_text(text + "\n")
            return text

    def finish(self) -> int:
        print(self.save())
        return 1 if broken(self.results) else 0


class Merged:
    """Lines of several passes, by part and name (and peer): the rounds of all, and the worst error."""

    def __init__(self):
        self.by_key: dict[tuple, dict] = {}

    def add(self, lines: list[dict]) -> None:
        for line in lines:
            key = (line["part"], line["name"], line.get("peer", ""))
            known = self.by_key.setdefault(key, {**line, "rounds_us": []})
            known["rounds_us"] += line["rounds_us"]
            for worst in ("error", "wrong"):
                if worst in line:
                    known[worst] = max(line[worst], known.get(worst, line[worst]))

    def lines(self) -> list[dict]:
        for line in self.by_key.values():
            line["us"] = statistics.median(line["rounds_us"])
            line["least_us"], line["most_us"] = min(line["rounds_us"]), max(line["rounds_us"])
        return list(self.by_key.values())


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return lines[-1][:400] if lines else "no output"


def broken(results: dict) -> bool:
    """A part that failed, a test that failed, a sanitizer's finding, a wrong result."""
    parts = results["parts"]
    tests = [t for t in parts.get("tests", {}).values() if isinstance(t, dict)]
    sanitized = [status for tool in parts.get("sanitize", {}).values() if isinstance(tool, dict) for status in tool.values()]
    lines = [line for part in parts.values() for line in part.get("ours", [])]
    return bool(any("failed" in p for p in parts.values()) or any(t["failed"] for t in tests) or any(sanitized)
                or any(line.get("wrong") for line in lines))


def command_output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def machine() -> dict:
    query = "name,driver_version,clocks.sm,power.draw,memory.total"
    return {
        "card": command_output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": command_output("git", "rev-parse", "--verify", "--quiet", "HEAD^{commit}"),  # empty where the tree came without .git
        "changed": bool(command_output("git", "status", "--porcelain", "--untracked-files=no")),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--started", type=float, default=time.time(), help="when the run began, the build included; seconds since 1970")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    args.only = [p for p in args.only.split(",") if p]
    unknown = [p for p in args.only if p not in PARTS]
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    return args


def main() -> int:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for log in args.out.glob("*.log"):
        if log.name != "build.log":
            log.unlink()
    suite = Suite(args)
    suite.run_all()
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
