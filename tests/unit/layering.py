"""Arrows between folders point one way. Reads every #include of the tree and compares it with the table below.

The table below is the rule. In short: base <- text, cache, device, policy, sample; cache, policy <- request <- schedule; device <- kernels <- model;
schedule, model, sample <- execute; these, text and cache <- engine; server <- include/quire, base. Besides, schedule has one
header of sample (ONLY_HEADER), and the command line reaches text, model and benchmarks where it runs no engine. An arrow that
nobody takes is taken out.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(os.environ.get("QUIRE_ROOT", Path(__file__).resolve().parents[2]))

PUBLIC = {"include/quire"}
ALLOWED = {
    "include/quire": set(),
    "src/base": set(),
    "src/text": {"src/base"},
    "src/cache": {"src/base"},
    "src/device": {"src/base"},
    "src/policy": {"src/base"},
    "src/request": {"src/base", "src/cache", "src/policy"},
    "src/schedule": {"src/base", "src/cache", "src/policy", "src/request", "src/sample"},
    "kernels": {"src/base", "src/device"},
    "src/sample": {"src/base"},
    "src/model": {"src/base", "src/device", "kernels"},
    "src/execute": {"src/base", "src/device", "kernels", "src/sample", "src/model", "src/schedule", "src/cache", "src/policy"},
    "src/engine": {f"src/{f}" for f in "base text cache policy request schedule execute".split()},
    # tokenize, inspect, bench: server/CMakeLists.txt declares the links.
    "server": {"src/base", "src/text", "src/model", "benchmarks"},
    "benchmarks": None,  # may include anything
    "tests": None,
}
# What sample gives to those below it is one header of plain values.
ONLY_HEADER = {("src/schedule", "src/sample"): "src/sample/sample_types.h"}

# The scheduler and what serves it know a KV policy by its traits and bounds: a new method is no new case there.
NAMES_NO_POLICY = ("src/cache", "src/request", "src/schedule", "src/engine", "server")
POLICY_NAME = re.compile(r"\bRetentionKind::k")

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def folder_of(path: str) -> str | None:
    """The layer a file or include path belongs to; None for third-party headers."""
    if path.startswith("quire/") and path.endswith(".h"):
        return "include/quire"
    return next((f for f in sorted(ALLOWED, key=len, reverse=True) if path.startswith(f + "/")), None)


def violations() -> list[str]:
    found = []
    unused = {(layer, target) for layer, targets in ALLOWED.items() for target in targets or ()}
    for file in sorted(ROOT.rglob("*")):
        relative = file.relative_to(ROOT).as_posix()
        if file.suffix not in {".h", ".cc", ".cu", ".cuh"} or relative.split("/")[0].startswith((".", "build")):
            continue
        layer = folder_of(relative)
        if layer is None or ALLOWED[layer] is None:
            continue
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            if layer in NAMES_NO_POLICY and POLICY_NAME.search(line):
                found.append(f"{relative}:{number}: {layer} names a KV policy; it asks for traits (src/policy/policy_spec.h)")
            match = INCLUDE.match(line)
            target = folder_of(match.group(1)) if match else None
            if target is None or target == layer or target in PUBLIC:
                continue
            unused.discard((layer, target))
            header = ONLY_HEADER.get((layer, target))
            if target not in ALLOWED[layer] or (header and match.group(1) != header):
                found.append(f"{relative}:{number}: {layer} must not include {match.group(1)}")
    found += [f"tests/unit/layering.py: no file of {layer} includes one of {target}" for layer, target in sorted(unused)]
    return found


if __name__ == "__main__":
    problems = violations()
    print("\n".join(problems) or "every include follows the arrows, and policies are named where they are made")
    sys.exit(1 if problems else 0)
