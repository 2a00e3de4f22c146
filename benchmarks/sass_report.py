#!/usr/bin/env python3
"""What ptxas made of every CUDA kernel, read from the built objects: no card is needed.

For each kernel and architecture: registers, stack, bytes of static loads and stores of local memory (ptxas -v calls them spills
where no array lives there), and how often the instructions stand that decide its speed. `--check` holds the kernels to the bounds
below; tests/kernel/sass_bounds.py runs it in ./quire test.

  benchmarks/sass_report.py                       the card library of build/release, as a table
  benchmarks/sass_report.py --kernel decode --arch sm_90a --output json
  benchmarks/sass_report.py --objects a.cubin b.o --check
"""

import argparse
import concurrent.futures
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Column, and what an instruction's text (opcode onwards, predicate stripped) matches.
COUNTED = {
    "hgmma": re.compile(r"HGMMA\."),  # wgmma
    "hmma": re.compile(r"HMMA\."),  # mma.sync
    "ublkcp": re.compile(r"UBLKCP"),  # bulk copies
    "utmaldg": re.compile(r"UTMALDG"),  # tensor copies
    "ldgsts": re.compile(r"LDGSTS"),  # cp.async
    "ldg128": re.compile(r"LDG\.\S*\b128"),  # 16-byte loads
    "ldl": re.compile(r"LDL\b"),
    "stl": re.compile(r"STL\b"),
    "trap": re.compile(r"BPT\.TRAP"),
    # ptxas 13.0 encodes a copy with a cache policy wrongly when it splits the target so: an illegal instruction on a card
    # (kernels/cuda/device_side.h, by_thread_pointer).
    "split_ldgsts": re.compile(r"LDGSTS\S* \[[^\]]*\+UR[^\]]*\], desc\["),
}
INTERESTING = re.compile(r"HGMMA|HMMA|UBLKCP|UTMALDG|LDGSTS|LDG\.|LDL|STL|BPT")
WIDTH = re.compile(r"\.(64|128|U8|S8|U16|S16)\b")
WIDTH_BYTES = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}

# Kernels stay in registers. By source, the bytes of stack that are allowed: rope's three heads a lane are held to 80 registers, which
# is faster than as many as they would take (kernels/cuda/README.md).
MOST_STACK = {"rope_kv_write.cu": 24}
WGMMA_SOURCES, WGMMA_ARCH = ("attention/prefill_sm90.cu", "matmul/wide_sm90.cu", "matmul/broad_sm90.cu"), "sm_90a"
# What runs once a tile must be short: 56 KB of it were fetched from afar and took 30 us (matmul/wide_sm90.cu).
MOST_INSTRUCTIONS = {"matmul/wide_sm90.cu": 2600, "matmul/broad_sm90.cu": 2800}


@dataclasses.dataclass
class Kernel:
    """One kernel for one architecture."""

    source: str  # below kernels/cuda/
    arch: str
    symbol: str
    name: str = ""
    registers: int = 0
    stack: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    instructions: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def add(self, instruction: str) -> None:
        for column, pattern in COUNTED.items():
            if pattern.match(instruction):
                self.counts[column] += 1
        if instruction.startswith(("LDL", "STL")):
            width = WIDTH.search(instruction.split()[0])
            size = WIDTH_BYTES[width.group(1)] if width else 4
            if instruction.startswith("STL"):
                self.spill_store_bytes += size
            else:
                self.spill_load_bytes += size

    def row(self) -> dict:
        fields = dataclasses.asdict(self)
        return {**{k: v for k, v in fields.items() if k != "counts"}, **self.counts}


def find_cuobjdump() -> str | None:
    """cuobjdump on PATH, in an installed toolkit, or among the wheels that ./quire brings: one with nvdisasm beside it, which it runs."""
    places = [Path(found)] if (found := shutil.which("cuobjdump")) else []
    places += [Path("/usr/local/cuda/bin/cuobjdump"), *sorted(ROOT.glob(".cuda/lib/python3.*/site-packages/nvidia/cu13/bin/cuobjdump"))]
    return next((str(p) for p in places if p.exists() and p.with_name("nvdisasm").exists()), None)


def dump(tool: str, option: str, file: Path, arch: str | None) -> str:
    command = [tool, option, *(["-arch", arch] if arch else []), file.name]
    environment = {"PATH": f"{Path(tool).parent}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"sass_report: {' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


def source_of(identifier: str) -> str:
    """`identifier = ../../kernels/cuda/attention/decode.cu` names the source; a bare cubin has none."""
    return identifier.split("kernels/cuda/")[-1].strip()


def parse_sass(text: str, default_source: str = "") -> list[Kernel]:
    kernels, source, arch = [], default_source, "?"
    for line in text.splitlines():
        if line.startswith("identifier ="):
            source = source_of(line.split("=", 1)[1])
        elif "code for sm_" in line:
            arch = line.split()[-1]
        elif "Function :" in line:
            kernels.append(Kernel(source=source, arch=arch, symbol=line.split()[-1]))
        elif kernels and line.startswith("        /*") and line[8] != " ":
            add_instruction(kernels[-1], line)
    return kernels


def add_instruction(kernel: Kernel, line: str) -> None:
    kernel.instructions += 1
    if INTERESTING.search(line):
        instruction = line.split("*/", 1)[1].split(";")[0].strip()
        kernel.add(re.sub(r"^@!?U?P\w+\s+", "", instruction))


def parse_resources(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(architecture, symbol) -> (registers, stack bytes)."""
    found, arch, symbol = {}, "?", ""
    for line in text.splitlines():
        if line.startswith("arch ="):
            arch = line.split("=")[1].strip()
        elif line.startswith(" Function "):
            symbol = line.split()[1].rstrip(":")
        elif symbol and (numbers := re.search(r"REG:(\d+) STACK:(\d+)", line)):
            found[arch, symbol] = int(numbers.group(1)), int(numbers.group(2))
    return found


def short_names(symbols: list[str]) -> list[str]:
    """decode_attention<bf16, 128, 3> for the mangled name; as it is where c++filt is missing."""
    if not shutil.which("c++filt"):
        return symbols
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = []
    for name in done.stdout.splitlines():
        for noise in ("(anonymous namespace)::", "quire::cuda::", "quire::", "void "):
            name = name.replace(noise, "")
        name = re.sub(r"\((int|bool|unsigned int)\)", "", name)
        names.append(re.sub(r"\(.*", "", name))
    return names


def read_objects(tool: str, files: list[Path], arch: str | None = None) -> list[Kernel]:
    jobs = [(file, option) for file in files for option in ("-sass", "-res-usage")]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        texts = list(pool.map(lambda job: dump(tool, job[1], job[0], arch), jobs))
    kernels, resources = [], {}
    for (file, option), text in zip(jobs, texts):
        if option == "-sass":
            kernels += parse_sass(text, file.name)
        else:
            resources.update(parse_resources(text))
    for kernel, name in zip(kernels, short_names([k.symbol for k in kernels])):
        kernel.name = name
        kernel.registers, kernel.stack = resources.get((kernel.arch, kernel.symbol), (0, 0))
    return sorted(kernels, key=lambda k: (k.source, k.name, k.arch))


def violations(kernels: list[Kernel]) -> list[str]:
    """What breaks the bounds, in sentences."""
    found = []
    for k in kernels:
        where = f"{k.source}: {k.name} ({k.arch})"
        most_stack = MOST_STACK.get(k.source, 0)
        if k.stack > most_stack or (most_stack == 0 and (k.counts["ldl"] or k.counts["stl"])):
            allowed = f"{most_stack} B of stack are" if most_stack else "none is"
            found.append(f"{where} uses local memory: stack {k.stack} B, {k.counts['ldl']} LDL, {k.counts['stl']} STL; {allowed} allowed")
        if k.counts["split_ldgsts"]:
            found.append(f"{where} has {k.counts['split_ldgsts']} LDGSTS of the form [R+UR], desc[UR], which ptxas 13.0 encodes wrongly")
        if k.source in WGMMA_SOURCES and k.arch == WGMMA_ARCH and not k.counts["hgmma"]:
            found.append(f"{where} has no HGMMA: its products do not run on wgmma")
        if k.source in WGMMA_SOURCES and k.arch != WGMMA_ARCH and not k.counts["trap"]:
            found.append(f"{where} has no trap: without wgmma's code it would leave its output as it was")
        most = MOST_INSTRUCTIONS.get(k.source)
        if most and k.instructions > most:
            found.append(f"{where} has {k.instructions} instructions, at most {most}")
    if any(k.arch == WGMMA_ARCH for k in kernels):
        there = {k.source for k in kernels if k.arch == WGMMA_ARCH}
        found += [f"{source} has no kernel for {WGMMA_ARCH}" for source in WGMMA_SOURCES if source not in there]
    return found


def table(kernels: list[Kernel]) -> str:
    columns = [c for c in COUNTED if c not in ("split_ldgsts", "trap")]
    lines = [f"{'kernel':<64} {'arch':<7} {'regs':>4} {'stack':>5} {'spill st':>8} {'ld':>4} {'instr':>6} " + " ".join(f"{c:>7}" for c in columns)]
    source = None
    for k in kernels:
        if k.source != source:
            source = k.source
            lines.append(source)
        counts = " ".join(f"{k.counts[c]:>7}" for c in columns)
        lines.append(
            f"  {k.name[:62]:<62} {k.arch:<7} {k.registers:>4} {k.stack:>5} {k.spill_store_bytes:>8} {k.spill_load_bytes:>4} {k.instructions:>6} {counts}"
        )
    return "\n".join(lines)


def built_library(build: Path) -> Path | None:
    library = build / "kernels/cuda/libquire_kernels_cuda_card.a"
    return library if library.exists() else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build/release", help="build directory (default build/release)")
    parser.add_argument("--objects", type=Path, nargs="+", help="objects, archives, programs or cubins instead")
    parser.add_argument("--arch", help="one architecture, such as sm_90a (default: all)")
    parser.add_argument("--kernel", help="regular expression that the kernel's name or source must match")
    parser.add_argument("--check", action="store_true", help="fail where a kernel breaks its bounds")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    tool = find_cuobjdump()
    if tool is None:
        sys.exit("sass_report: no cuobjdump on PATH, in /usr/local/cuda/bin or .cuda/; `QUIRE_CUDA=on ./quire setup` brings it")
    files = args.objects or [f for f in [built_library(args.build)] if f]
    missing = [str(f) for f in files if not f.exists()]
    if missing or not files:
        sys.exit(f"sass_report: {', '.join(missing) or f'{args.build} holds no CUDA objects'}: not found")
    kernels = read_objects(tool, [f.resolve() for f in files], args.arch)
    wanted = [k for k in kernels if not args.kernel or re.search(args.kernel, f"{k.source} {k.name}")]
    print(json.dumps([k.row() for k in wanted], indent=1) if args.output == "json" else table(wanted))
    problems = violations(kernels) if args.check else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
