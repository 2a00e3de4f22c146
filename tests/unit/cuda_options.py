#!/usr/bin/env python3
"""What the build says of lists of CUDA architectures and of old compilers, before it compiles anything: cmake's own script mode
runs the functions of cmake/QuireCudaArchitectures.cmake, with made-up nvccs."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ROOT / "cmake/QuireCudaArchitectures.cmake"

# list, what the refusal says (empty: it is taken)
LISTS = [
    ("80-real;90a-real", ""),
    ("86", ""),
    ("90a", ""),
    ("80-virtual", ""),
    ("100-real;120-virtual", ""),
    ("", "is empty"),
    ("75-real", "holds `75-real`; the kernels need at least 80"),
    ("80-real;70", "holds `70`; the kernels need at least 80"),
    ("80-real;90-real", "holds `90-real`: machine code for plain 90 has no warpgroup products; write 90a-real"),
    ("90", "write 90a-real"),
    ("native", "holds `native`; each entry is an architecture"),
    ("all-major", "name no fixed list"),
    ("100f-real", "CMake takes no family names"),
    ("sm_80", "holds `sm_80`; each entry is an architecture"),
]


def cmake(script: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".cmake") as file:
        file.write(f'include("{FUNCTIONS}")\n{script}')
        file.flush()
        done = subprocess.run(["cmake", "-P", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cmake failed:\n{done.stderr}")
    return done.stderr.strip()  # message() writes there


def check_lists() -> list[str]:
    lists = [*LISTS, (release_list(), "")]
    found = []
    for architectures, said in lists:
        fault = cmake(f'quire_architectures_fault("{architectures}" fault)\nmessage("${{fault}}")\n')
        if (said not in fault) if said else fault:
            found.append(f"`{architectures}`: wanted `{said}`, got `{fault}`")
    return found


def release_list() -> str:
    presets = json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]
    return next(p["cacheVariables"]["QUIRE_CUDA_ARCHITECTURES"] for p in presets if p["name"] == "cuda-release")


def check_release() -> list[str]:
    wanted = {"80-real", "86-real", "89-real", "90a-real"}
    entries = set(release_list().split(";"))
    found = [f"cuda-release lacks {e}" for e in sorted(wanted - entries)]
    return found + ([] if any(e.endswith("-virtual") for e in entries) else ["cuda-release has no PTX"])


def check_compilers() -> list[str]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for release in ("11.5", "13.0", "13.2", "none"):
            paths[release] = Path(folder) / f"nvcc-{release}"
            paths[release].write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.119'\n")
            paths[release].chmod(0o755)
        for order, chosen in ((("11.5", "13.0", "13.2"), "13.0"), (("13.2",), "13.2"), (("11.5", "none"), None)):
            names = ";".join(str(paths[r]) for r in order)
            said = cmake(f'quire_choose_nvcc("{names}" nvcc old)\nmessage("${{nvcc}}|${{old}}")\n')
            wanted = str(paths[chosen]) if chosen else ""
            if said.split("|")[0] != wanted:
                found.append(f"of {order}: chose `{said}`, wanted `{wanted}`")
            if "11.5" in order and "nvcc-11.5 (11.5)" not in said.split("|")[1]:
                found.append(f"of {order}: does not say that 11.5 was passed over: `{said}`")
    return found


if __name__ == "__main__":
    problems = check_lists() + check_release() + check_compilers()
    print("\n".join(problems) or "lists and compilers are taken and refused as they should be")
    sys.exit(1 if problems else 0)
