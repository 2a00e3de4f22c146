#!/usr/bin/env python3
"""Plants bugs in what brings a step to a device, and in what keeps the lists of policies that go by scores on the host, one at a time, and
sees that the tests on the host shim catch each.

A bug is a text replaced in a copy of one source file; the copy is compiled and linked as the build compiles and links, before the build's own
libraries. A bug that the tests survive fails this script, and so does a text that does not stand in its file exactly once.

    device_step_bugs.py --build build/release [--quick] [--only TEXT]

Programs: unit_execute, cuda_rows_test, golden_device_tables, golden_device_traffic, golden_micro_vectors, golden_retention,
golden_retention_memory.
"""
import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DELTAS, STEP, RUNNER, GRAPHS = (f"src/execute/{name}.cc" for name in ("table_deltas", "device_step", "cuda_runner", "step_graphs"))
SCORES = "src/execute/retention_runner.cc"
KERNEL, CACHE_STEP = "kernels/cuda/bring_step.cu", "src/cache/step_transaction.cc"
TABLES, TRAFFIC = ("golden_device_tables", "*"), ("golden_device_traffic", "*")
UNITS, ROWS = ("unit_execute", "TableDeltas.*"), ("cuda_rows_test", "*BringsAStepsArrays*")
VECTORS, LISTS, MEMORY = (("golden_micro_vectors", "*"), ("golden_retention", "*InOneBatch:*EachSamplesOwn:*EachBeamsOwn"), ("golden_retention_memory", "*OnTheCpu*"))
SKIPPED = 77  # exit status, as ctest knows it
HELD = "the device holds"  # what the comparison with the plan says

# quick (run with every test run), name, file, old text, new text, test, what must be said (any of)
BUGS = [
    (True, "a block copied on write is not brought", DELTAS, "    row.kept = std::min({s.num_unchanged_blocks, known_[static_cast<size_t>(from)].count, count});",
     "    row.kept = std::min({known_[static_cast<size_t>(from)].count, count});", TABLES, [HELD]),
    (False, "a copied tail is called unchanged", CACHE_STEP, "  table.changed_from(table.num_blocks() - 1);\n", "", TRAFFIC, [HELD]),
    (True, "a row is taken over with the list that stood there", DELTAS, "    if (known_[row].sequence == sequence) {", "    if (row < known_.size()) {", TABLES, [HELD]),
    (False, "a row keeps the length of the list that stood there", STEP, "put(host, at.lengths, from.lengths, from.num_sequences, shape.sequences, 0);",
     "put(host, at.lengths, from.lengths, from.num_sequences - 1, from.num_sequences - 1, 0);", TABLES, [HELD]),
    (False, "a swapped list comes back unannounced", DELTAS, "  std::swap(known_, next_);", "  for (const Known& k : known_)\n    if (std::none_of(next_.begin(), next_.end(), "
     "[&](const Known& n) { return n.sequence == k.sequence; })) next_.push_back(k);\n  std::swap(known_, next_);", TABLES, [HELD]),
    (False, "a step that failed is built upon", RUNNER, "    if (!queued->result.status) tables_.forget();", "    if (!queued->result.status) (void)0;", TABLES, [HELD]),
    (False, "what was brought before a fault counts as brought", DELTAS, "      forget();\n", "", UNITS, ["entries().size()"]),
    (False, "one block too few of a list is brought", DELTAS, "  row.added = count - row.kept;", "  row.added = std::max(0, count - row.kept - 1);", TABLES, [HELD]),
    (False, "rows that pad write to slot 0", STEP, "put(host, at.slots, from.slots, from.rows, shape.rows, int64_t{-1});",
     "put(host, at.slots, from.slots, from.rows, shape.rows, int64_t{0});", TABLES, ["token"]),
    (False, "a padded step's rows belong to its last sequence", STEP, "query_start[s] + (shape.with_prompts ? 0 : 1);", "query_start[s];\n"
     "  if (shape.with_prompts) query_start[from.num_sequences] = static_cast<int32_t>(shape.rows);", TABLES, ["token", "Failure"]),
    (False, "both turns have one set of tables", STEP, ".before = tables_[1 - turn].as<const int32_t>()", ".before = tables_[turn].as<const int32_t>()", TABLES,
     ["tables before and after are one"]),
    (False, "a graph is run for the other turn", GRAPHS, "  device_.run(*graph->captured[turn]);", "  device_.run(*graph->captured[graph->captured[1 - turn] ? 1 - turn : turn]);",
     TABLES, [HELD, "token"]),
    (False, "kept entries come from the row's own place", KERNEL, "p.before + r.from * p.stride;", "p.before + row * p.stride;", ROWS, ["wanted"]),
    (False, "an entry that comes alone is looked for among the others", KERNEL, "  if (r.added == 1) {", "  if (r.added == 0) {", ROWS, ["wanted", "outside every allocation"]),
    (False, "a row's record is read before it is there", KERNEL, "  sync_threads();\n", "", ROWS, ["race", "nobody wrote"]),
    (True, "what a chunk's rows gave is lost with the next", SCORES, "scores[static_cast<size_t>(j)] += column_sums_", "scores[static_cast<size_t>(j)] = column_sums_", VECTORS, ["Failure"]),
    (False, "tova's cut goes by a chunk's first row", SCORES, "work.first_row + static_cast<int64_t>(work.sequence->tokens.size()) - 1;", "work.first_row;", VECTORS, ["Failure"]),
    (False, "what is kept is not moved", SCORES, ".count = s.list_length_before}", ".count = 0}", VECTORS, ["Failure"]),
    (False, "every list of a row is weighed as the first one", SCORES, "lse_.data() + work.first_row * num_q_heads_ + first_head(state, list)", "lse_.data() + work.first_row * num_q_heads_", VECTORS, ["Failure"]),
    (False, "h2o's lists go by means", SCORES, "    if (policy.kind == RetentionKind::kTova) {", "    if (policy.budget >= 0) {", LISTS, ["Failure"]),
    (False, "a layer's sums go on in the next", SCORES, "  if (wants_sums_) clear_sums();\n", "", LISTS, ["Failure"]),
    (False, "every layer overwrites the slot that the first one gave up", SCORES, "step.set_slot(s, work.first_row, layer, head, slot);", "step.set_slot(s, work.first_row, 0, head, slot);", LISTS, ["Failure"]),
    (False, "a sample begins without its prompt's lists", SCORES, "    if (sample.sequence != s.sequence) states_[value(sample.sequence)] = *work.state;\n", "    (void)sample;\n", LISTS, ["Failure"]),
    (False, "a beam begins without its source's lists", SCORES, "    guarded(f.target, [&] { states_.insert_or_assign(value(f.target), state); });\n", "    (void)state;\n", LISTS, ["Failure"]),
    (False, "a cached prefix has no slots", SCORES, "position < s.first_position; ++position)", "position < 0; ++position)", ("golden_retention", "*BehindACachedPrefix"), ["Failure"]),
    (False, "a list without memory fails all requests", SCORES, "    if (!has_failed(s.sequence)) continue;\n", "", MEMORY, ["Failure"]),
]


def command_of(build: pathlib.Path, target: str) -> str:
    """The build's last command for a target, to be run in its folder."""
    said = subprocess.run(["ninja", "-C", str(build), "-t", "commands", target], capture_output=True, text=True, check=True).stdout
    return said.strip().splitlines()[-1]


def object_of(build: pathlib.Path, file: str) -> str:
    """The object of a source; of a kernel, the one for the host shim."""
    name = file.replace("kernels/cuda/", "__/") if file.endswith(".cu") else pathlib.Path(file).name
    found = [p for p in build.rglob(f"{pathlib.Path(name).name}.o") if str(p).endswith(f".dir/{name}.o")]
    if len(found) != 1:
        sys.exit(f"{build} has {len(found)} objects of {file}: build the tests first")
    return str(found[0].relative_to(build))


def compile_mutant(build: pathlib.Path, tree: pathlib.Path, file: str, old: str, new: str) -> str:
    text = (ROOT / file).read_text()
    if text.count(old) != 1:
        sys.exit(f"{file} has {text.count(old)} places of: {old!r}")
    source = tree / pathlib.Path(file).name
    source.write_text(text.replace(old, new))
    made = object_of(build, file)
    words = shlex.split(command_of(build, made))
    if words[0].endswith("ccache"):
        words = words[1:]
    words[words.index("-c") + 1] = str(source)
    words[words.index("-o") + 1] = str(tree / "mutant.o")
    words = [w for w in words if w != "-Werror"]
    subprocess.run(words, check=True, cwd=build)
    return str(tree / "mutant.o")


def link(build: pathlib.Path, program: str, mutant: str, target: pathlib.Path) -> None:
    words = shlex.split(command_of(build, program).removeprefix(": && ").split(" && ")[0])
    words[words.index("-o") + 1] = str(target)
    first = next(i for i, word in enumerate(words) if word.endswith(".o"))
    subprocess.run([*words[:first], mutant, *words[first:]], check=True, cwd=build)


def run(path: pathlib.Path, cases: str) -> tuple[bool, str]:
    environment = os.environ | {"QUIRE_ROOT": str(ROOT), "QUIRE_TEST_DEVICE": "cuda-host", "QUIRE_TRAFFIC_S": "5"}
    try:
        done = subprocess.run([str(path), f"--gtest_filter={cases}"], capture_output=True, text=True, errors="replace", timeout=120, cwd=ROOT, env=environment)
    except subprocess.TimeoutExpired:
        return True, "does not end"
    return done.returncode != 0, "\n".join(line for line in (done.stdout + done.stderr).splitlines() if " level=info " not in line)


def try_bug(build: pathlib.Path, file: str, old: str, new: str, test: tuple[str, str], said: list[str]) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        link(build, test[0], compile_mutant(build, tree, file, old, new), tree / test[0])
        failed, output = run(tree / test[0], test[1])
    if "SKIPPED" in output:
        print(f"{test[0]} was skipped: the shared models are not there (QUIRE_SHARED)")
        sys.exit(SKIPPED)
    line = next((one for one in output.splitlines() for part in said if part in one), "")
    return failed and line != "", line.strip()[:140] or output[-300:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a finished build with the tests")
    parser.add_argument("--quick", action="store_true", help="only the few that run with every test run")
    parser.add_argument("--only", default="", help="plant only bugs whose name contains this")
    args = parser.parse_args()
    survivors = 0
    for quick, name, file, old, new, test, said in BUGS:
        if args.only not in name or (args.quick and not quick):
            continue
        start = time.monotonic()
        caught, line = try_bug(args.build.resolve(), file, old, new, test, said)
        survivors += not caught
        print(f"{'caught  ' if caught else 'SURVIVED'} {name} ({pathlib.Path(file).name}) {time.monotonic() - start:.0f} s, {test[0]}: {line}", flush=True)
    print(f"{survivors} planted bugs survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
