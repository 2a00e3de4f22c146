"""Runs every test program of a build and counts its cases.

All of them are CTest entries. GoogleTest programs write their cases as XML, pytest suites as JUnit XML; others count as one case each.
Prints a line for each program, the reason of each skip, the output of each failure, and last "N passed, N failed, N skipped".
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


@dataclasses.dataclass
class Outcome:
    """What one program's run came to: counts of cases, reasons of skips, and its output if something failed."""

    name: str
    passed: int = 0
    failed: int = 0
    skips: Counter = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    remembered: str = ""  # what a plain program took from a run before it, by the digest of all that goes into it
    output: str = ""

    @property
    def skipped(self) -> int:
        return sum(self.skips.values())


@dataclasses.dataclass
class Program:
    """One thing to run. `report` is the XML file it writes its cases to, if it does."""

    name: str
    label: str
    command: list[str]
    report: Path
    timeout_s: float
    environment: dict[str, str]
    directory: Path


def ctest_programs(build: Path, suffix: str, results: Path) -> list[Program]:
    """The CTest entries of a build directory."""
    if not (build / "CTestTestfile.cmake").exists():
        return []
    listing = subprocess.run(["ctest", "--show-only=json-v1"], cwd=build, capture_output=True, text=True, check=True)
    programs = []
    for test in json.loads(listing.stdout)["tests"]:
        if "command" not in test:
            programs.append(Program(test["name"] + suffix, "unit", ["false"], results / "none.xml", 1, {}, build))
            continue
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        environment = dict(item.split("=", 1) for item in properties.get("ENVIRONMENT", []))
        name = test["name"] + suffix
        report = results / f"{name}.xml"
        command = list(test["command"])
        if "pytest" in command:
            command.append(f"--junitxml={report}")
        elif "python" not in Path(command[0]).name:  # a script's own test programs would write their cases there
            environment["GTEST_OUTPUT"] = f"xml:{report}"
        programs.append(
            Program(
                name=name,
                label=properties.get("LABELS", ["unit"])[0] if not suffix else "sanitize",
                command=command,
                report=report,
                timeout_s=float(properties.get("TIMEOUT", 300)),
                environment=environment,
                directory=Path(properties.get("WORKING_DIRECTORY", build)),
            )
        )
    return programs


def read_cases(report: Path) -> tuple[int, int, Counter]:
    """Counts (passed, failed, skips by reason) of a GoogleTest or JUnit XML file."""
    passed, failed, skips = 0, 0, Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skipped is not None:
            reason = (skipped.get("message") or skipped.text or "no reason given").strip().splitlines()
            skips[reason[-1] if reason else "no reason given"] += 1
        elif case.get("status") == "notrun":
            skips["disabled"] += 1
        else:
            passed += 1
    return passed, failed, skips


def run(program: Program) -> Outcome:
    """Runs one program, with a folder of its own for its temporary files: the same test of another build may run beside it."""
    with tempfile.TemporaryDirectory(prefix="quire-test-", ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o711)  # root's tests of what another user meets go in as that user
        return run_in(program, scratch)


class Processes:
    """The programs that run, each with a session of its own, so that it ends with all that it began: a pytest suite with its servers."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal may come while this thread holds it
        self.running: set[subprocess.Popen] = set()
        self.interrupted = False

    def begin(self, command: list[str], **kwargs) -> subprocess.Popen:
        with self.lock:
            if self.interrupted:
                raise OSError("interrupted")
            process = subprocess.Popen(command, start_new_session=True, **kwargs)
            self.running.add(process)
            return process

    def kill(self, process: subprocess.Popen) -> None:
        """Once it was waited for its number may be somebody else's."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def output_of(self, process: subprocess.Popen, timeout_s: float) -> tuple[str, bool]:
        """What it wrote, and whether it ended in time."""
        in_time = True
        try:
            written = process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            in_time = False
            self.kill(process)
            written = process.communicate()[0]
        finally:
            with self.lock:
                self.running.discard(process)
        return written.decode(errors="replace"), in_time

    def interrupt(self, number: int, _frame: object) -> None:
        """A signal's handler. Programs in sessions of their own hear nothing of a terminal's."""
        with self.lock:
            self.interrupted = True
            for process in self.running:
                self.kill(process)
        sys.exit(128 + number)


PROCESSES = Processes()

# numpy's products are small here; OpenBLAS's other threads only wait for them, busily, on the core of the next job:
# a case of tests/e2e/policy_reference.py takes 1.25 s of processors with two threads and 0.26 s with one.
ONE_NUMPY_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def run_in(program: Program, scratch: str) -> Outcome:
    """A crash, a time-out or a non-zero exit without a failed case is one failure."""
    program.report.unlink(missing_ok=True)
    start = time.monotonic()
    outcome = Outcome(program.name)
    try:
        process = PROCESSES.begin(
            program.command,
            cwd=program.directory,
            env={**os.environ, **ONE_NUMPY_THREAD, "TMPDIR": scratch, "TEST_TMPDIR": scratch, **program.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, in_time = PROCESSES.output_of(process, program.timeout_s)
        code = process.returncode
        if not in_time:
            code, output = -1, output + f"\ntimed out after {program.timeout_s:.0f} s"
    except OSError as problem:
        code, output = -1, str(problem)
    outcome.seconds = time.monotonic() - start
    if program.report.exists():
        outcome.passed, outcome.failed, outcome.skips = read_cases(program.report)
    elif code == 77:  # the convention of a plain program that cannot run here; its last line says why
        lines = output.strip().splitlines()
        outcome.skips[lines[-1] if lines else "no reason given"] += 1
    elif code == 0:
        outcome.passed = 1
        outcome.remembered = next((line for line in output.splitlines() if line.startswith("remembered: ")), "")
    if code not in (0, 77) and outcome.failed == 0:
        outcome.failed = 1
    if code == 0 and outcome.passed + outcome.failed + outcome.skipped == 0:
        outcome.failed, output = 1, output + "\nnot one case ran: does a filter match nothing?"
    if outcome.failed:
        outcome.output = output
    return outcome


def seconds_before(times: Path) -> dict[str, float]:
    return json.loads(times.read_text()) if times.exists() else {}


def longest_first(programs: list[Program], times: Path) -> list[Program]:
    """By the seconds of the run before, so that no core is idle while the last long one runs; those never run yet come first."""
    seconds = seconds_before(times)
    return sorted(programs, key=lambda program: -seconds.get(program.name, math.inf))


def keep_seconds(outcomes: list[Outcome], times: Path) -> None:
    """Those of programs that this run left out stay."""
    seconds = seconds_before(times) | {o.name: round(o.seconds, 1) for o in outcomes}
    written = times.with_suffix(".new")
    written.write_text(json.dumps(seconds, indent=1))
    written.replace(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)  # each entry knows it
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--label", help="run only tests with this label")
    parser.add_argument("--fuzz-seconds", type=int, default=60, help="seconds for each fuzz target, a third for some")
    args = parser.parse_args()

    results = args.build / "test-results"
    results.mkdir(parents=True, exist_ok=True)
    start, times = time.monotonic(), results / "seconds.json"
    programs = ctest_programs(args.build, "", results)
    for sanitizer in ("asan", "tsan"):
        sanitized = ctest_programs(args.build.parent / sanitizer, f" ({sanitizer})", results)
        # tools/test.sh names the tests that are built so; the other entries of that build have no program.
        programs += [p for p in sanitized if Path(p.command[0]).parent.name == "tests" and Path(p.command[0]).exists()]
    os.environ["QUIRE_FUZZ_SECONDS"] = str(args.fuzz_seconds)
    for program in programs:
        if program.label == "fuzz":
            program.timeout_s = args.fuzz_seconds + 120
    if args.label:
        programs = [p for p in programs if p.label == args.label]
    if not programs:
        print(f"no tests{f' with the label {args.label}' if args.label else ''}")
        return 1

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and the background of a shell
            signal.signal(number, PROCESSES.interrupt)
    outcomes = []

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        mark = "FAILED" if outcome.failed else "ok"
        skipped = f", {outcome.skipped} skipped" if outcome.skipped else ""
        remembered = f"  ({outcome.remembered})" if outcome.remembered else ""
        print(f"  {outcome.name:44} {mark:6} {outcome.passed:5} passed{skipped}  {outcome.seconds:6.1f} s{remembered}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(max_workers=args.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, p) for p in longest_first(programs, times)]):
            report(future.result())
    keep_seconds(outcomes, times)

    for outcome in outcomes:
        if outcome.output:
            print(f"\n---- {outcome.name} failed:\n{outcome.output[-8000:]}")
    for outcome in outcomes:
        for reason, count in outcome.skips.items():
            print(f"  skipped {count} of {outcome.name}: {reason}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"  the tests took {time.monotonic() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processors")
    failed = sum(o.failed for o in outcomes)
    print(f"{sum(o.passed for o in outcomes)} passed, {failed} failed, {sum(o.skipped for o in outcomes)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
