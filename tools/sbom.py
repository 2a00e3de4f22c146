"""Writes a CycloneDX software bill of materials of a build: Debian packages, Rust crates, Python packages.

usage: python tools/sbom.py [--output quire.cdx.json]    the document
       python tools/sbom.py --crates                      the crates by licence, as THIRD_PARTY.md has them
Versions are those of this machine: dpkg for system packages, `cargo metadata` for the crates of a build on this platform,
tools/requirements.txt for Python. Licences are SPDX expressions: the crates' own, and a table for the few libraries beside them.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What ends up inside the binary (libgrpc++-dev pulls in the static archives it needs), with the licence of what is linked: a package's
# copyright file also lists its tests and build scripts.
LINKED_PACKAGES = {
    "libgrpc++-dev": "Apache-2.0 AND BSD-3-Clause",  # upb and address_sorting are BSD
    "libgrpc-dev": "Apache-2.0 AND BSD-3-Clause",
    "libprotobuf-dev": "BSD-3-Clause",
    "libssl-dev": "Apache-2.0",
    "zlib1g-dev": "Zlib",
    "libzstd-dev": "BSD-3-Clause OR GPL-2.0-only",
    "libc-ares-dev": "MIT",
    "libre2-dev": "BSD-3-Clause",
    "libabsl-dev": "Apache-2.0",
    "libfmt-dev": "MIT",
    "libspdlog-dev": "MIT",
    "libcli11-dev": "BSD-3-Clause",
    "nlohmann-json3-dev": "MIT",
}
# The compiler's own, by its version: libstdc++-12-dev.
COMPILER_PACKAGES = ("libstdc++", "libgcc")
COMPILER_LICENCE = "GPL-3.0-or-later WITH GCC-exception-3.1"
RUST_LICENCE = "MIT OR Apache-2.0"
PYTHON_LICENCES = {
    "grpcio": "Apache-2.0",
    "grpcio-tools": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "pytest": "MIT",
    "pytest-timeout": "MIT",
    "pytest-asyncio": "Apache-2.0",
    "numpy": "BSD-3-Clause",
    "matplotlib": "LicenseRef-matplotlib",  # in the manner of Python's
}


def component(name: str, version: str, purl: str, licence: str, scope: str = "required") -> dict:
    licences = [{"expression": licence}]
    return {"type": "library", "scope": scope, "name": name, "version": version, "purl": f"pkg:{purl}/{name}@{version}", "licenses": licences}


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def linked_packages() -> dict[str, str]:
    major = output_of("c++", "-dumpversion").strip().split(".")[0]
    return LINKED_PACKAGES | {f"{name}-{major}-dev": COMPILER_LICENCE for name in COMPILER_PACKAGES}


def debian_components() -> list[dict]:
    packages = linked_packages()
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${Version} ${Status}\n", *packages], capture_output=True, text=True, check=False
    ).stdout
    rows = [line.split() for line in listing.splitlines() if line.endswith("install ok installed")]
    return [component(r[0], r[1], "deb/debian", packages[r[0]]) for r in rows]


def rust_tool(name: str) -> str | Path:
    return shutil.which(name) or Path.home() / ".cargo" / "bin" / name


def rust_component() -> dict:
    return component("rust-std", output_of(rust_tool("rustc"), "--version").split()[1], "generic", RUST_LICENCE)


def cargo_metadata() -> dict:
    cargo = rust_tool("cargo")
    manifest = ROOT / "src" / "text" / "ffi" / "Cargo.toml"
    target = f"{platform.machine()}-unknown-linux-gnu"
    command = [cargo, "metadata", "--format-version", "1", "--locked", "--filter-platform", target, "--manifest-path", manifest]
    return json.loads(output_of(*command))


def spdx(expression: str) -> str:
    return re.sub(r"\s*/\s*", " OR ", expression)  # older crates write MIT/Apache-2.0


def crates() -> list[tuple[dict, bool]]:
    """Each crate of the build, and whether it is linked: the others only run in the compiler (macros and what they use)."""
    metadata = cargo_metadata()
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    linked, waiting = set(), [root]
    while waiting:
        at = waiting.pop()
        if at in linked or any("proc-macro" in target["kind"] for target in packages[at]["targets"]):
            continue
        linked.add(at)
        waiting += [d["pkg"] for d in nodes[at]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"])]
    return [(p, p["id"] in linked) for p in sorted(packages.values(), key=lambda p: (p["name"], p["version"])) if p["id"] != root]


def cargo_components() -> list[dict]:
    return [component(p["name"], p["version"], "cargo", spdx(p["license"]), "required" if linked else "excluded") for p, linked in crates()]


def crates_by_licence() -> str:
    """Markdown: a row for each licence; a star where a crate is not linked."""
    rows: dict[str, list[str]] = {}
    for package, linked in crates():
        names = rows.setdefault(spdx(package["license"]), [])
        name = package["name"] + ("" if linked else "*")
        if name not in names:
            names.append(name)
    lines = [f"| {licence} | {', '.join(names)} |" for licence, names in sorted(rows.items())]
    return "\n".join(["| licence | crates |", "|---|---|", *lines]) + "\n"


def python_components() -> list[dict]:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "tools" / "requirements.txt").read_text(), re.MULTILINE)
    return [component(name, version, "pypi", PYTHON_LICENCES[name], "optional") for name, version in pins]


def project_version() -> str:
    return re.search(r"project\(quire VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file to write; standard output otherwise")
    parser.add_argument("--crates", action="store_true", help="print the crates by licence instead")
    args = parser.parse_args()
    if args.crates:
        sys.stdout.write(crates_by_licence())
        return 0
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "quire", "version": project_version(), "licenses": [{"license": {"id": "Apache-2.0"}}]}},
        "components": debian_components() + [rust_component()] + cargo_components() + python_components(),
    }
    text = json.dumps(document, indent=1) + "\n"
    if args.output:
        args.output.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
