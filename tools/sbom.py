"""Writes a CycloneDX software bill of materials of a build: Debian packages, Rust crates, Python packages.

usage: python tools/sbom.py [--output quire.cdx.json]
Versions are those of this machine: dpkg for system packages, Cargo.lock for crates, tools/requirements.txt for Python.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What ends up inside the binary (libgrpc++-dev pulls in the static archives it needs).
LINKED_PACKAGES = """libgrpc++-dev libgrpc-dev libprotobuf-dev libssl-dev zlib1g-dev libzstd-dev libc-ares-dev libre2-dev libabsl-dev libfmt-dev libspdlog-dev
libcli11-dev nlohmann-json3-dev""".split()


def debian_components() -> list[dict]:
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${Version} ${Status}\n", *LINKED_PACKAGES], capture_output=True, text=True, check=False
    ).stdout
    rows = [line.split() for line in listing.splitlines() if line.endswith("install ok installed")]
    return [{"type": "library", "name": r[0], "version": r[1], "purl": f"pkg:deb/debian/{r[0]}@{r[1]}"} for r in rows]


def cargo_components() -> list[dict]:
    lock = ROOT / "src" / "text" / "ffi" / "Cargo.lock"
    pairs = re.findall(r'\[\[package\]\]\nname = "([^"]+)"\nversion = "([^"]+)"\nsource', lock.read_text())
    return [{"type": "library", "name": n, "version": v, "purl": f"pkg:cargo/{n}@{v}"} for n, v in pairs]


def python_components() -> list[dict]:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "tools" / "requirements.txt").read_text(), re.MULTILINE)
    return [{"type": "library", "scope": "optional", "name": n, "version": v, "purl": f"pkg:pypi/{n}@{v}"} for n, v in pins]


def project_version() -> str:
    return re.search(r"project\(quire VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file to write; standard output otherwise")
    args = parser.parse_args()
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "quire", "version": project_version(), "licenses": [{"license": {"id": "Apache-2.0"}}]}},
        "components": debian_components() + cargo_components() + python_components(),
    }
    text = json.dumps(document, indent=1) + "\n"
    if args.output:
        args.output.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
