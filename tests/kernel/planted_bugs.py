#!/usr/bin/env python3
"""Plants bugs in the attention kernels, or with --products in that of 17 to 64 rows, one at a time, and sees that their tests on the host shim catch each.

A bug is a replacement in a copy of the sources; the copy is compiled for head size 64 alone (seconds instead of a minute) and
linked before the library, so that the rest comes from the normal build. A bug that the tests survive fails this script, and so
does one that kernels/planted_bugs.md says another test catches.
What the shim cannot see, since blocks run one after another there: a missing fence_grid() between blocks.
"""
import argparse
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile

import planted_bug_table

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from caught_before import CaughtBefore  # noqa: E402

TABLE = ROOT / "kernels/planted_bugs.md"
FOLDER, PRODUCTS_FOLDER = "kernels/cuda/attention", "kernels/cuda/matmul"
DECODE = "Decode/*decode64:Decode/*block8:Decode/*padding:Decode/*many_sequences:Decode/*units_shared*:AttentionAfter*"
PREFILL = "Prefill/*prefill64:Prefill/*mixed:Prefill/*sink*:Prefill/*prefill_window"

# name, file, old text, new text, sources to compile, tests to run, what must be said (any of)
BUGS = [
    ("a warp refills a stage that lanes still read", "decode_block.h",
     "        sync_warp();  // all lanes have read the stage that the next copies overwrite\n", "",
     ["decode.cu"], DECODE, ["race: write"]),
    ("one copy too many is left in flight", "decode_block.h", "      cp_async_wait<2>();", "      cp_async_wait<3>();",
     ["decode.cu"], DECODE, ["in flight"]),
    ("lanes read what other lanes have fetched, unsynchronised", "decode_block.h",
     "    sync_warp();  // the other lanes' copies too\n", "", ["decode.cu"], DECODE, ["race: read", "in flight"]),
    ("no barrier between warps' results and their merge", "decode_block.h",
     "    store_warp();\n    sync_threads();\n", "    store_warp();\n", ["decode.cu"], DECODE, ["race: read", "nobody wrote"]),
    ("no barrier after the merge", "decode_block.h",
     "    sync_threads();  // the unit before is merged\n", "", ["decode.cu"], DECODE, ["race: read"]),
    ("another list's blocks are taken for this one's", "decode_block.h",
     "ids_entry == fetch_at.entry(a) && ids_from ==", "ids_from ==", ["decode.cu"], DECODE, ["values[", "outside every allocation"]),
    ("the block after the right one", "decode_block.h",
     "id_low = load(table + (slot >> a.view.block_shift));", "id_low = load(table + (slot >> a.view.block_shift) + 1);",
     ["decode.cu"], DECODE, ["values[", "outside every allocation"]),
    ("the second block of a tile is the first", "decode_block.h",
     "id_high = load(table + (slot >> 3) + 1);", "id_high = id_low;", ["decode.cu"], DECODE, ["values["]),
    ("one slot too many is seen", "decode.h", "return slot < length && (slot", "return slot <= length && (slot",
     ["decode.cu"], DECODE, ["values["]),
    ("a warp takes a short unit's empty tiles for its range's end", "decode_block.h", "      if (!walk(fetch_at)) {",
     "      if (fetch_tile >= share.to || !walk(fetch_at)) {", ["decode.cu"], DECODE, ["nobody wrote", "values["]),
    ("a range that begins behind a short unit's tiles begins with them", "decode_plan.cu",
     "    if (begin >= first.end()) {", "    if (false) {", ["decode_plan.cu"], DECODE, ["nobody wrote", "values[", "counter"]),
    ("the plan is read before it is whole", "decode_block.h", "    if (!a.plan_is_old) wait_for_previous_kernel();\n", "",
     ["decode.cu"], DECODE, ["before wait_for_previous_kernel()"]),
    ("the blocks of a unit that comes first are known to the end of its share alone", "decode_block.h", "    if (tile < fetch_at.end()) {",
     "    if (tile < fetch_end) {", ["decode.cu"], DECODE, ["values["]),
    ("a share ends with the unit that comes first", "decode_block.h", "    if (unit.at.begin >= share.stop) {",
     "    if (unit.at.begin >= share.stop) return false;\n    if (false) {", ["decode.cu"], DECODE, ["values[", "counter"]),
    ("blocks past the last range take one", "decode_plan.cu", "    if (part >= ranges.parts) return s;\n", "", ["decode_plan.cu"], "Decode/*more_blocks_than_ranges",
     ["values[", "counter", "outside every allocation"]),
    ("the first that shares a unit is the block itself", "decode_plan.cu", "s.front_first = ranges.owner(first.at.begin);",
     "s.front_first = part;", ["decode_plan.cu"], DECODE, ["values[", "counter"]),
    ("a split is lost in the merge", "decode_block.h", "head.fold(lane, last - first + 1,", "head.fold(lane, last - first,",
     ["decode.cu"], DECODE, ["values["]),
    ("a unit's counter is not reset", "decode_block.h", "    if (lane == 0) store(counter, 0);\n", "", ["decode.cu"], DECODE, ["counter"]),
    ("the last block but one merges", "decode_block.h", "if (shfl(before, 0) != last - first)", "if (shfl(before, 0) != last - first - 1)", ["decode.cu"], "Decode/*one_list_over*",
     ["values[", "counter"]),
    ("the wrong one of a block's two partials", "decode_block.h", "j == 0 && starts_inside", "starts_inside", ["decode.cu"], DECODE, ["values["]),
    ("dead rows of the last tile are fetched", "decode_block.h", "source + v.v_offset, row < rows, policy);", "source + v.v_offset, true, policy);", ["decode.cu"], DECODE,
     ["values[", "outside every allocation"]),
    ("this step's slots are fetched before the wait", "decode_block.h",
     "return fetch_tile == fetch_at.end() - 1;", "return false;", ["decode.cu"], DECODE, ["before wait_for_previous_kernel()"]),
    ("the next kernel is let go before the wait", "decode_block.h",
     "    if (a.plan_is_old) wait_for_previous_kernel();\n    let_next_kernel_start();",
     "    let_next_kernel_start();\n    if (a.plan_is_old) wait_for_previous_kernel();",
     ["decode.cu"], DECODE, ["let_next_kernel_start()"]),
    ("the owner of a tile is reckoned with the longer ranges' length", "work_split.h", "(tile - in_longer) / each;", "(tile - in_longer) / (each + 1);",
     ["decode_plan.cu"], "Decode/*equal_lists_not_aligned", ["values[", "counter"]),
    ("a sink takes no probability", "paged_kv.h", "if (v.sinks != nullptr) s.sum +=", "if (false) s.sum +=",
     ["decode.cu"], "Decode/*sinks", ["values["]),
    ("sinks are left to the kernel that knows none", "decode.cu", "v.sinks == nullptr && ", "", ["decode.cu"], "Decode/*sinks", ["values differ"]),
    ("a window's sinks are not seen", "decode.h", "|| slot < sink_slots);", ");", ["decode.cu"], "Decode/*streams*", ["values["]),
    ("the layer's window hides the sequence's own", "paged_kv.h", ": min(v.window, own);", ": v.window;",
     ["decode_plan.cu"], "Decode/*own_windows*", ["values["]),
    ("the window holds for the sinks' phase too", "flash_tile.h", "return kCascade || end <= sinks_of(v, sequence) ? 0 :", "return kCascade ? 0 :",
     ["prefill.cu"], "Prefill/*streams*", ["values["]),
    ("a split of a shared prefix is dropped", "decode_block.h", "head.fold(lane, (to - from) * splits,", "head.fold(lane, to - from,",
     ["decode.cu"], "Cascade/*split", ["values["]),
    ("shared slots are read again with the private ones", "decode_plan.cu", "list.first_slot = max(list.first_slot, load(v.private_start + sequence));", ";",
     ["decode_plan.cu"], "Cascade/*split", ["values["]),
    ("row logits that nobody asked for are written", "paged_kv.h", "return start < 0 ? nullptr : v.row_logits", "return v.row_logits",
     ["decode.cu"], "SideOutputs.*", ["outside every allocation"]),
    ("a row sees its successor", "flash_tile.h", "task.index_of_row0 + min(packed, task.rows - 1) / a.view.group;",
     "task.index_of_row0 + 1 + min(packed, task.rows - 1) / a.view.group;", ["prefill.cu"], PREFILL, ["values["]),
    ("no barrier between V's arrival and its use", "prefill.cu", "      sync_threads();  // V has come; K is used up\n", "",
     ["prefill.cu"], PREFILL, ["race", "in flight"]),
    ("V of a tile is fetched over the one before while others read it", "prefill.cu",
     "      sync_threads();  // K has come; V of the tile before is used up\n", "", ["prefill.cu"], PREFILL, ["race", "in flight"]),
    ("values keep an old largest logit", "prefill.cu", "if (!scores.softmax(v.scale * kLog2e, rows, factor)) return;",
     "scores.softmax(v.scale * kLog2e, rows, factor);\n    if (kSlots > 0) return;", ["prefill.cu"], PREFILL, ["values["]),
    ("the last tile of rows is never taken", "task_finder.h", "tile = shfl(mine, owner) - 1 - from_end;",
     "tile = max(0, shfl(mine, owner) - 2 - from_end);", ["prefill.cu"], PREFILL, ["values["]),
    ("a column's last rows are not summed", "side_outputs.cu", "row < task.rows; row += kSumWarps * 16", "row + 16 < task.rows; row += kSumWarps * 16",
     ["side_outputs.cu"], PREFILL, ["column_sums["]),
    ("a segment's last slot is its successor's", "partials.cu", "min(begin + a.segment_slots, row.index + 1)", "min(begin + a.segment_slots - 1, row.index + 1)",
     ["partials.cu"], "Decode/*decode64:Prefill/*prefill64", ["partials["]),
    ("what a larger logit should shrink in a segment stays", "plain_row.h", "values[i] *= factor;", "values[i] *= 1;", ["partials.cu"], "Decode/*decode64", ["partials["]),
    ("slots before the window are in a segment", "plain_row.h", "(slot >= first || slot < sink_slots); };", "(slot >= 0 || slot < sink_slots); };",
     ["partials.cu"], "Decode/*window", ["partials["]),
]


WIDE = "*TilesThatBlocksShareAreAdded/bf16"
PRODUCT_BUGS = [
    ("one copy too many is left in flight", "wide.cu", "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", ["wide.cu"], WIDE, ["in flight"]),
    ("no barrier before a stage is read and another filled", "wide.cu",
     "        sync_threads();  // the stage is there for all, and no one reads the one that is filled next\n", "", ["wide.cu"], WIDE,
     ["race", "in flight", "nobody wrote"]),
    ("the head's sums are left out", "wide.cu", "for (int block = head; block <= last; ++block)", "for (int block = head + 1; block <= last; ++block)",
     ["wide.cu"], WIDE, ["m 17"]),
    ("a tile's count is not put back", "wide.cu", "if (last) store(a_.scratch.arrivals + head, 0);", "", ["wide.cu"], WIDE, ["m 17", "m 64", "differs"]),
    ("the last block but one adds", "wide.cu", "== range_.last_of(f) - head;", "== range_.last_of(f) - head - 1;", ["wide.cu"], WIDE, ["m 17"]),
    ("a block's two partial sums share a place", "wide_plan.h", "int64_t{2} * block + (head ? 1 : 0)", "int64_t{2} * block", ["wide.cu"], WIDE,
     ["m 17", "m 64"]),
    ("rows beyond w are written", "wide_plan.h", "if (m < p.m && n < p.n) put_sum<T>", "if (m < p.m) put_sum<T>", ["wide.cu"], WIDE,
     ["outside every allocation", "m 17"]),
    ("the next kernel is let go before the wait", "wide.cu", "    wait_for_previous_kernel();\n    let_next_kernel_start();",
     "    let_next_kernel_start();\n    wait_for_previous_kernel();", ["wide.cu"], WIDE, ["let_next_kernel_start()"]),
]


def plant(folder: str, tree: pathlib.Path, file: str, old: str, new: str) -> None:
    for source in (ROOT / folder).iterdir():
        text = source.read_text()
        if source.name == file:
            if text.count(old) != 1:
                sys.exit(f"{file} has {text.count(old)} places of: {old!r}")
            text = text.replace(old, new)
        text = re.sub(r"    case (?:80|96|128|256):\n      return .*;\n", "", text)  # only head size 64
        if re.search(r"case (80|96|128|256):", text):
            sys.exit(f"{source.name} is not cut to head size 64: its cases are written in another way")
        (tree / source.name).write_text(text)


def build(tree: pathlib.Path, sources: list[str], link: list[str]) -> pathlib.Path:
    objects = []
    for source in sources:
        objects.append(str(tree / (source + ".o")))
        subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-fPIC", f"-I{tree.parents[2]}", f"-I{ROOT}", f"-I{ROOT}/include",
                        "-DFMT_HEADER_ONLY=1", "-x", "c++", "-c", str(tree / source), "-o", objects[-1]], check=True)
    program = tree / "planted"
    subprocess.run(["g++", "-o", str(program), *objects, "-Wl,--start-group", *link, "-Wl,--end-group", "-lgtest", "-lgtest_main", "-lpthread", "-ldl",
                    "-lrt"], check=True)
    return program


def see(bug: tuple, where: str, link: list[str]) -> tuple[list[str], planted_bug_table.Row | None]:
    """Plants it; the tests that failed and its line of the table, none if nothing was said as it must be."""
    name, file, old, new, sources, tests, said = bug
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / where
        tree.mkdir(parents=True)
        plant(where, tree, file, old, new)
        program = build(tree, sources, link)
        try:
            run = subprocess.run([str(program), f"--gtest_filter={tests}"], capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            print(f"SURVIVED {file:15} {name}: hung for 120 s", flush=True)
            return [], None
    failed = planted_bug_table.failed_tests(run.stdout)
    word = next((word for word in said if word in run.stdout), None) if run.returncode and failed else None
    evidence = next((line.strip()[:150] for line in run.stdout.splitlines() if word and word in line), "no failure as expected")
    print(f"{'caught  ' if word else 'SURVIVED'} {file:15} {name}: {evidence}", flush=True)
    return failed, planted_bug_table.Row(name, file, failed[0], len(failed) - 1, word) if word else None


def see_or_recall(bug: tuple, where: str, link: list[str], before: CaughtBefore) -> tuple[list[str], planted_bug_table.Row | None]:
    known = before.of(bug)
    if known:
        failed, row = known
        print(f"before   {bug[1]:15} {bug[0]}", flush=True)
        return failed, planted_bug_table.Row(*row)
    failed, row = see(bug, where, link)
    if row:
        before.keep(bug, [failed, dataclasses.astuple(row)])
    return failed, row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--link", nargs="+", required=True, help="objects of the test and the static libraries")
    parser.add_argument("--products", action="store_true", help="the product's bugs; --link is of its test")
    parser.add_argument("--only", default="", help="plant only bugs whose name contains this")
    parser.add_argument("--write-table", action="store_true", help=f"write this folder's part of {TABLE.name} instead of comparing with it")
    parser.add_argument("--keep", type=pathlib.Path, help="leave out what was caught before with the same sources and tests, and keep that in this file")
    args = parser.parse_args()
    bugs, where = (PRODUCT_BUGS, PRODUCTS_FOLDER) if args.products else (BUGS, FOLDER)
    chosen = [bug for bug in bugs if args.only in bug[0]]
    if not chosen:
        sys.exit(f"--only {args.only!r} names none of the {len(bugs)} bugs")
    sources = [path for path in (ROOT / where).iterdir() if path.is_file()]
    before = CaughtBefore(args.keep, [pathlib.Path(__file__), *sources, *map(pathlib.Path, args.link)])
    seen = {bug[0]: see_or_recall(bug, where, args.link, before) for bug in chosen}
    survivors = sum(row is None for _, row in seen.values())
    print(f"{survivors} of {len(chosen)} planted bugs survived ({len(bugs)} in all)")
    if args.write_table and not survivors and len(chosen) == len(bugs):
        planted_bug_table.write(TABLE, where, [row for _, row in seen.values()])
    wrong = planted_bug_table.differences(TABLE, where, {bug[0]: bug[1] for bug in bugs}, {name: failed for name, (failed, _) in seen.items()})
    for line in wrong:
        print(f"{TABLE.relative_to(ROOT)} {line}")
    return 1 if survivors or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
