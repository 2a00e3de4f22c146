#!/usr/bin/env python3
"""Holds the built CUDA kernels to the bounds of benchmarks/sass_report.py.

First planted faults, in the text that cuobjdump prints: each bound must catch its own. Then the objects of the build, and that
kernels/README.md or kernels/cuda/README.md says of each kernel what bounds it and what it should reach, in figures. Exit status 77
(skipped) with a reason where no CUDA objects were built or cuobjdump is missing.

Reading the objects takes 24 s of processors, and gives the same for the same objects, tools and reader: with --keep it is done once for
them. All bounds are checked each time.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import sass_report  # noqa: E402

NO_TOOL = ("no cuobjdump with nvdisasm beside it on PATH, in /usr/local/cuda/bin or .cuda/ (`./quire test` brings them): registers, spills, HGMMA and "
           "the stated figures of all built kernels are not tested")
PAGES = ("kernels/README.md", "kernels/cuda/README.md")  # whose tables name every kernel
HEADER = "identifier = ../../kernels/cuda/{source}\n\tcode for {arch}\n\t\tFunction : kernel\n"
LINE = "        /*0010*/                   {text} ;        /* 0x0000000012237dae */\n"
HEALTHY = [
    "@P0 LDGSTS.E.BYPASS.LTC128B.128 [R35+0x2000], desc[UR4][R18.64], P0",
    "LDG.E.EF.128 R4, desc[UR6][R2.64]",
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0",
]
SPLIT_COPY = "@!P3 LDGSTS.E.BYPASS.LTC128B.128 [R35+UR0+0x2000], desc[UR1][R24.64], P0"  # as ptxas 13.0 wrote it in decode at head size 64
WGMMA, WIDE = "attention/prefill_sm90.cu", "matmul/wide_sm90.cu"

# name, source, architecture, instructions, what the report must say (empty: nothing)
PLANTED = [
    ("a sound kernel is left alone", WGMMA, "sm_90a", HEALTHY, ""),
    ("a spill in attention", "attention/decode.cu", "sm_80", HEALTHY + ["STL.64 [R1+0x8], R2"], "uses local memory: stack 0 B, 0 LDL, 1 STL"),
    ("a local array in a product", "matmul/skinny.cu", "sm_90a", HEALTHY + ["@P1 LDL R3, [R1]"], "1 LDL, 0 STL"),
    ("a spill in sampling", "sampling.cu", "sm_80", ["LDL.LU R9, [R1]"], "uses local memory"),
    ("a spill in a norm", "norm.cu", "sm_80", ["LDL.LU R9, [R1]"], "uses local memory"),
    ("local memory where it is allowed", "rope_kv_write.cu", "sm_80", ["LDL.LU R9, [R1]"], ""),
    ("a copy that ptxas encodes wrongly", "attention/decode.cu", "sm_90a", HEALTHY + [SPLIT_COPY], "has 1 LDGSTS of the form [R+UR], desc[UR]"),
    ("a Hopper prefill without wgmma", WGMMA, "sm_90a", HEALTHY[:2], "has no HGMMA"),
    ("a Hopper product without wgmma", WIDE, "sm_90a", HEALTHY[:2], "has no HGMMA"),
    ("a Hopper product that writes each sum by its own code", WIDE, "sm_90a", HEALTHY * 900, "has 2700 instructions, at most 2600"),
    ("no Hopper product at all", WGMMA, "sm_90a", HEALTHY, "wide_sm90.cu has no kernel for sm_90a"),
    ("a Hopper prefill for another card that is empty", WGMMA, "sm_80", ["EXIT"], "has no trap"),
    ("a Hopper product for another card that is empty", WIDE, "sm_80", ["EXIT"], "has no trap"),
    ("a Hopper prefill for another card that traps", WGMMA, "sm_80", ["BPT.TRAP 0x1"], ""),
    ("no Hopper prefill at all", "attention/decode.cu", "sm_90a", HEALTHY, "prefill_sm90.cu has no kernel for sm_90a"),
]


def kernels_of(source: str, arch: str, instructions: list[str]) -> list[sass_report.Kernel]:
    text = HEADER.format(source=source, arch=arch) + "".join(LINE.format(text=i) for i in instructions)
    return sass_report.parse_sass(text)


def check_planted() -> list[str]:
    """The planted faults that the bounds do not see, and false alarms."""
    missed = []
    for name, source, arch, instructions, said in PLANTED:
        kernels = kernels_of(source, arch, instructions)
        lines = sass_report.violations(kernels)
        found = "\n".join(lines)
        alarms = [line for line in lines if "has no kernel for" not in line]  # of the sources that are not planted
        if (said not in found) if said else alarms:
            missed.append(f"planted `{name}`: wanted `{said}`, the bounds said `{found}`")
        if len(kernels) != 1 or kernels[0].instructions != len(instructions):
            missed.append(f"planted `{name}`: {len(kernels)} kernels were read")
    return missed


def check_stack() -> list[str]:
    """More stack than a source may have, which no instruction says."""
    kernel = kernels_of("rope_kv_write.cu", "sm_80", ["LDL.LU R9, [R1]"])[0]
    kernel.stack = sass_report.MOST_STACK[kernel.source] + 8
    found = [line for line in sass_report.violations([kernel]) if "stack 32 B, 1 LDL, 0 STL; 24 B of stack are allowed" in line]
    return [] if found else ["planted `a larger stack in rope`: the bounds said nothing"]


def check_counts() -> list[str]:
    kernel = kernels_of("attention/decode.cu", "sm_90a", HEALTHY + ["STL.128 [R1], R4", "LDL R4, [R1+0x10]"])[0]
    counts = {c: kernel.counts[c] for c in ("hgmma", "hmma", "ldgsts", "ldg128", "ldl", "stl")}
    wanted = {"hgmma": 1, "hmma": 0, "ldgsts": 1, "ldg128": 1, "ldl": 1, "stl": 1}
    if counts != wanted or (kernel.spill_store_bytes, kernel.spill_load_bytes) != (16, 4):
        return [f"counted {counts}, {kernel.spill_store_bytes} B stored, {kernel.spill_load_bytes} B loaded"]
    return []


def stated_kernels(text: str) -> set[str]:
    """The kernels that a page's tables give a bound and an expected figure, with a digit: named in the first cell of a row that has both."""
    stated, columns = set(), []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif {"bound by", "expected"} <= set(columns) and cells[columns.index("bound by")] and re.search(r"\d", cells[columns.index("expected")]):
            stated |= set(re.findall(r"`(\w+)`", cells[0]))
    return stated


def check_stated() -> list[str]:
    head = "| kernel | bound by | expected |\n|---|---|---|\n"
    wanted = {
        head + "| op (`a`, `b`) | memory | 0.9 |\n": {"a", "b"},
        head + "| `a` | memory | |\n| `b` | | 0.9 |\n": set(),
        head + "| `a` | memory | not meant for speed |\n| `b` | memory | as a decode step |\n": set(),
        "| kernel | works on |\n|---|---|\n| `a` | rows |\n": set(),
        head + "\nand `a` in a sentence\n": set(),
    }
    return [f"of {text!r} {stated_kernels(text)} are stated, {names} should be" for text, names in wanted.items() if stated_kernels(text) != names]


def unstated(kernels: list[sass_report.Kernel]) -> list[str]:
    stated = stated_kernels("\n\n".join((ROOT / page).read_text() for page in PAGES))
    names = {(k.source, k.name.split("<")[0]) for k in kernels}
    return [f"{source}: {' and '.join(PAGES)} do not say what bounds {name} and what it should reach" for source, name in sorted(names) if name not in stated]


def missing(architectures: list[str], kernels: list[sass_report.Kernel]) -> list[str]:
    """Of the architectures that the build was configured for, as `90a-real` or `90-virtual`, whose code is not there."""
    built = {k.arch for k in kernels}
    wanted = [f"sm_{a.removesuffix('-real')}" for a in architectures if not a.endswith("-virtual")]
    return [f"no kernel is built for {arch}; there are {', '.join(sorted(built))}" for arch in wanted if arch not in built]


def check_missing() -> list[str]:
    kernels = kernels_of("norm.cu", "sm_80", HEALTHY)
    found = missing(["80-real", "90a-real", "90-virtual"], kernels)
    return [] if found == ["no kernel is built for sm_90a; there are sm_80"] else [f"planted `a build without sm_90a`: {found}"]


def digest_of(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def read_once(tool: Path, library: Path, keep: Path | None) -> list[sass_report.Kernel]:
    inputs = digest_of([library, tool, tool.with_name("nvdisasm"), Path(sass_report.__file__)])
    if keep and keep.exists() and (kept := json.loads(keep.read_text()))["inputs"] == inputs:
        print("remembered: what cuobjdump read of the same objects")
        return [sass_report.Kernel(**kernel) for kernel in kept["kernels"]]
    kernels = sass_report.read_objects(str(tool), [library])
    if keep:
        written = keep.with_suffix(".new")
        written.write_text(json.dumps({"inputs": inputs, "kernels": [dataclasses.asdict(k) for k in kernels]}, indent=1))
        written.replace(keep)
    return kernels


def check_built(build: Path, wanted: list[str], keep: Path | None) -> list[str]:
    library, tool = sass_report.built_library(build), sass_report.find_cuobjdump()
    if library is None or tool is None:
        print(f"no CUDA objects under {build}" if library is None else NO_TOOL)
        sys.exit(77)
    kernels = read_once(Path(tool), library, keep)
    unread = [k.symbol for k in kernels if k.registers == 0]
    problems = missing(wanted, kernels) + sass_report.violations(kernels) + unstated(kernels) + [f"no resource usage for {symbol}" for symbol in unread]
    architectures = sorted({k.arch for k in kernels})
    print(f"{len(kernels)} kernels for {', '.join(architectures)}")
    return problems if kernels else [f"{library} holds no kernels"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--architectures", nargs="*", default=[], help="what the build is for, as CMake names them: 80-real 90a-real")
    parser.add_argument("--keep", type=Path, help="the file that keeps what was read of the objects")
    args = parser.parse_args()
    problems = check_planted() + check_stack() + check_counts() + check_stated() + check_missing() or check_built(args.build, args.architectures, args.keep)
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
