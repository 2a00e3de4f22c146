#!/usr/bin/env python3
"""Plants bugs in cache, queue, scheduler and engine, one at a time, and sees that the simulator or the tests catch each in a minute.

A bug is a text replaced in a copy of one source file. The copy alone is compiled and linked before the normal build's libraries. The
programs run in the order of PROGRAMS until one fails; a failure that names no broken rule (a crash, a hang) counts too. A bug that
survives them all fails this script, and so does a text that does not stand in its file exactly once. A program counts as hung when it
takes many times as long as it takes without a bug on this machine, now.

    bookkeeping_bugs.py --build build/release [--quick] [--only TEXT] [--jobs N] [--table FILE.md] [--keep FILE.json]
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from caught_before import CaughtBefore  # noqa: E402

from bookkeeping_rows import BUGS  # noqa: E402

LIBRARIES = ["sim", "engine_core", "fake_executor", "traces", "model", "schedule", "request", "policy", "cache", "sample", "movers", "device", "base"]
SECONDS = 60  # for one bug, all programs together, compiling apart
HUNG = 8  # times as long as without a bug
PATIENCE = 20  # seconds that any program may take before it is asked whether it hangs

# Name in the table, test program, which of its cases: those of a second first, so that a minute is enough on a busy machine too, and no
# slow program counts as hung. The cache's tests are only for the cache's files: their model of it has names that the scheduler has too; the
# policies' are only for the policies'.
PROGRAMS = [
    ("cache units", "cache_unit_test", "*"),
    ("policy units", "policy_test", "*"),
    ("queue units", "request_test", "*"),
    ("scheduler units", "schedule_test", "*"),
    ("disk units", "disk_test", "*"),
    ("simulator", "sim_test", "Simulation.FreshSeedsRunClean"),
    ("cache model", "cache_property_test", "*"),
    ("scripts", "sim_test", "SimScript.*:Simulation.Replays*"),
    ("traffic", "engine_traffic_test", "*"),
]


def misplaced() -> list[str]:
    """The bugs that cannot be planted: asked of all of them, also where few are planted, so that none grows stale."""
    found = []
    for _, name, file, old, _ in BUGS:
        places = (ROOT / file).read_text().count(old)
        if places != 1:
            found.append(f"{name}: {file} has {places} places of {old!r}")
    return found


def plant(tree: pathlib.Path, file: str, old: str, new: str) -> pathlib.Path:
    source = tree / file
    source.parent.mkdir(parents=True)
    source.write_text((ROOT / file).read_text().replace(old, new))
    return source


def compile_mutant(source: pathlib.Path) -> pathlib.Path:
    target = source.with_suffix(".o")
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-DFMT_HEADER_ONLY=1", f"-I{ROOT}", f"-I{ROOT}/include", "-c", str(source),
                    "-o", str(target)], check=True)
    return target


def objects_of(build: pathlib.Path, program: str) -> list[pathlib.Path]:
    return list((build / "tests/CMakeFiles" / f"{program}.dir").rglob("*.o"))


def libraries_of(build: pathlib.Path) -> list[pathlib.Path]:
    return [path for name in LIBRARIES for path in build.rglob(f"libquire_{name}.a")]


def inputs_of(build: pathlib.Path) -> list[pathlib.Path]:
    """All that decides whether a bug is caught."""
    tests = [path for program in {program for _, program, _ in PROGRAMS} for path in objects_of(build, program)]
    return [*sorted(pathlib.Path(__file__).parent.glob("bookkeeping_*.py")), *(ROOT / file for file in {bug[2] for bug in BUGS}), *tests, *libraries_of(build)]


def link(build: pathlib.Path, program: str, mutant: pathlib.Path, target: pathlib.Path) -> None:
    objects = [str(path) for path in objects_of(build, program)]
    libraries = [str(path) for path in libraries_of(build)]
    if not objects:
        sys.exit(f"{build} has no {program}: build it first")
    subprocess.run(["g++", "-fno-lto", "-o", str(target), str(mutant), *objects, "-Wl,--start-group", *libraries, "-Wl,--end-group", "-lgtest", "-lgtest_main",
                    "-lfmt", "-lz", "-lpthread"], check=True)


def evidence(output: str) -> str:
    """The line that says what broke."""
    for pattern in (r"check failed[^\n]*", r"invariant \d[^\n]*", r"executor: [^\n]*", r"(?:pool|holders|tree|eviction): [^\n]*",
                    r"are held by nobody[^\n]*", r"stuck[^\n]*", r"[^\n]*Failure\n[^\n]*"):
        found = re.search(pattern, output)
        if found:
            return " ".join(re.sub(rf"{ROOT}/|{tempfile.gettempdir()}/tmp[^/]*/|(\.\./)+", "", found.group(0)).split())[:140]
    return "ended by a signal"


def run(path: pathlib.Path, cases: str, limit: float) -> tuple[bool, str] | None:
    """Whether it failed, and what it said; None if it had not ended at the limit."""
    environment = os.environ | {"QUIRE_SEED": "1", "QUIRE_SIM_SECONDS": "10"}
    try:
        done = subprocess.run([str(path), f"--gtest_filter={cases}"], capture_output=True, text=True, errors="replace", timeout=limit, cwd=ROOT,
                              env=environment)
    except subprocess.TimeoutExpired:
        return None
    return done.returncode != 0, evidence(done.stdout + done.stderr)


def run_until_hung(path: pathlib.Path, unharmed: pathlib.Path, cases: str) -> tuple[bool, str]:
    """As run(); a program that is slow because the machine is gets the time it needs."""
    result = run(path, cases, PATIENCE)
    if result is None:
        start = time.monotonic()
        if run(unharmed, cases, 600) != (False, evidence("")):
            sys.exit(f"{unharmed} fails without a bug, or does not end")
        limit = HUNG * (time.monotonic() - start)
        if limit > PATIENCE:
            result = run(path, cases, limit)
        result = result or (True, f"does not end within {max(limit, PATIENCE):.0f} s")
    return result


def try_bug(build: pathlib.Path, file: str, old: str, new: str) -> tuple[str, str, float]:
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        mutant = compile_mutant(plant(tree, file, old, new))
        spent = 0.0
        for name, program, cases in PROGRAMS:
            if name.startswith("cache") and not file.startswith("src/cache"):
                continue
            if name.startswith("disk") != file.startswith("src/execute"):  # the others do not link it
                continue
            if name.startswith("policy") and not file.startswith("src/policy"):
                continue
            path = tree / program
            if not path.exists():
                link(build, program, mutant, path)
            start = time.monotonic()
            if spent > SECONDS:
                return "", "", spent
            caught, said = run_until_hung(path, build / "tests" / program, cases)
            spent += time.monotonic() - start
            if caught:
                return name, said, spent
    return "", "", spent


def write_table(path: str, rows: list[tuple]) -> None:
    lines = ["# Planted bugs and what caught them", "",
             f"`{' '.join(['tests/mutation/bookkeeping_bugs.py', '--build BUILD', '--table', path])}`: {sum(bool(r[2]) for r in rows)} of "
             f"{len(rows)} caught, the slowest after {max(r[4] for r in rows):.0f} s.", "",
             "| bug | file | caught by | what it said | s |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {pathlib.Path(file).name} | {by or 'SURVIVED'} | {said.replace('|', '/')} | {spent:.1f} |" for name, file, by, said, spent in rows]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a finished build with the tests")
    parser.add_argument("--quick", action="store_true", help="only the few that run with every test run")
    parser.add_argument("--only", default="", help="plant only bugs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time; times are of a machine that has a core for each")
    parser.add_argument("--table", help="write what caught each to this file")
    parser.add_argument("--keep", type=pathlib.Path, help="leave out what was caught before with the same sources and tests, and keep that in this file")
    args = parser.parse_args()
    if stale := misplaced():
        sys.exit("\n".join(stale))
    before = CaughtBefore(args.keep, inputs_of(args.build))

    def result_of(bug: tuple) -> tuple:
        _, name, file, old, new = bug
        known = before.of(bug)
        by, said, spent = known or try_bug(args.build, file, old, new)
        verdict = "before  " if known else "caught  " if by else "SURVIVED"
        print(f"{verdict} {name} ({pathlib.Path(file).name}) {spent:.1f} s, {by}: {said}", flush=True)
        if by and not known:
            before.keep(bug, [by, said, spent])
        return name, file, by, said, spent

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as at_once:
        rows = list(at_once.map(result_of, [bug for bug in BUGS if args.only in bug[1] and (bug[0] or not args.quick)]))
    survivors = sum(not row[2] for row in rows)
    print(f"{survivors} of {len(rows)} planted bugs survived")
    if args.table:
        write_table(args.table, rows)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
