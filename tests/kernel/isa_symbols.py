#!/usr/bin/env python3
"""The units that are compiled once per instruction set (kernels/cpu/isa_*.cc) share no code with each other.

Of a function that several objects define weakly the linker keeps one copy, whichever comes first: were it one that a unit compiled for
AVX-512, a machine without it would meet an illegal instruction. So of the functions in those objects that the linker may merge
- none may have been compiled for a wider level: no VEX or EVEX instruction in it;
- none may come from the headers below the target pragma, wide or not today: in quire::cpu only names of the headers above it.
First planted symbols and instructions, each of which the rules must tell apart; then the objects of the build.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ABOVE_PRAGMA = ["kernels/cpu/op_table.h", "kernels/cpu/element.h", "kernels/kernels.h"]
LEVELS = ["isa_plain", "isa_avx2", "isa_avx512", "isa_avx512bf16"]

NM = "0000000000000000 {kind} {name}\n"
CODE = "0000000000000000 <{name}>:\n   0:\tpush   %rbp\n   1:\t{instruction}\n"
CURSOR, SHARED, STD, OWN = "quire::cpu::LineCursor::step()", "quire::cpu::padded_dim(long)", "float* std::__fill_n_a<float*>(float*)", "quire::cpu::(anonymous namespace)::f()"
# name of the case, symbol kind, symbol, instruction, whether it is a violation
PLANTED = [
    ("a class of a tile header, merged", "W", CURSOR, "mov    %rax,%rbx", True),
    ("the same as an object of its own", "t", CURSOR, "vmovdqu64 (%rax),%zmm0", False),
    ("a weak variable of a tile header", "u", "quire::cpu::PartAsker::kBytesAhead", "mov    %rax,%rbx", True),
    ("a function of a shared header", "W", SHARED, "mov    %rax,%rbx", False),
    ("the same compiled for AVX2", "W", SHARED, "vmovd  %xmm0,%eax", True),
    ("a library's template", "W", STD, "movss  %xmm0,(%rax)", False),
    ("the same compiled for AVX-512", "W", STD, "vmovss %xmm0,(%rax)", True),
    ("an unnamed namespace", "t", OWN, "vaddps %zmm0,%zmm1,%zmm2", False),
]

SYMBOL = re.compile(r"^[0-9a-f]+ ([WVu]) (.+)$", re.M)
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
WIDE = re.compile(r"^\s+[0-9a-f]+:\s+(?:\{\w+\}\s+)?v(?!err|erw|m(?:call|launch|resume|xo))\w+")


def wide_functions(disassembly: str) -> set[str]:
    """The functions that hold a VEX or EVEX instruction: all of those have mnemonics in v."""
    found: set[str] = set()
    name = ""
    for line in disassembly.splitlines():
        if start := FUNCTION.match(line):
            name = start[1]
        elif WIDE.match(line):
            found.add(name)
    return found


def violations(symbols: str, disassembly: str, shared_words: set[str]) -> list[str]:
    wide = wide_functions(disassembly)
    found = []
    for _, name in SYMBOL.findall(symbols):
        ours = re.search(r"\bquire::cpu::(\w+)", name.split("<")[0].split("(")[0])
        if name in wide:
            found.append(f"{name} may be merged with another unit's, and is compiled for this unit's level")
        elif ours and ours[1] not in shared_words:
            found.append(f"{name} may be merged with another unit's, and is of a header below the target pragma")
    return found


def planted_faults_missed(shared_words: set[str]) -> list[str]:
    missed = []
    for case, kind, name, instruction, wrong in PLANTED:
        found = violations(NM.format(kind=kind, name=name), CODE.format(name=name, instruction=instruction), shared_words)
        if bool(found) != wrong:
            missed.append(f"planted `{case}`: wanted {'a violation' if wrong else 'none'}, found {found}")
    return missed


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", required=True, help="the objects, separated by ;")
    objects = [Path(p) for p in parser.parse_args().objects.split(";") if Path(p).name.split(".")[0] in LEVELS]
    shared_words = set(re.findall(r"\w+", "".join((ROOT / header).read_text() for header in ABOVE_PRAGMA)))
    problems = planted_faults_missed(shared_words)
    if sorted(p.name.split(".")[0] for p in objects) != sorted(LEVELS):
        problems.append(f"expected one object each of {', '.join(LEVELS)}; got {[p.name for p in objects]}")
    for path in objects:
        symbols = output_of("nm", "-C", str(path))
        code = output_of("objdump", "-d", "-C", "--no-show-raw-insn", str(path))
        problems += [f"{path.name}: {v}" for v in violations(symbols, code, shared_words)]
    print("\n".join(problems) if problems else f"{len(objects)} objects share no code of their own")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
