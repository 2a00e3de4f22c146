"""Fails when a C++ or CUDA file is not what clang-format-19 makes of it under .clang-format; names the files and the first place of each.

Run by CTest. Exit code 77, with the reason last, where the formatter is not there: other versions format differently.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["QUIRE_ROOT"])
FOLDERS = ("include", "src", "kernels", "server", "benchmarks", "tests")
ENDINGS = {".h", ".cc", ".cu", ".cuh"}


def sources() -> list[str]:
    """Every C++ and CUDA file of the folders, relative to the root. The Rust crates' own build folder is not ours."""
    found = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in ENDINGS and path.is_file() and "target" not in path.parts:
                found.append(str(path.relative_to(ROOT)))
    return sorted(found)


def findings(formatter: str, files: list[str]) -> dict[str, str]:
    """The first line that differs, by file."""
    first: dict[str, str] = {}
    command = [formatter, "--dry-run", "--style=file", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for line in done.stderr.splitlines():
        place = re.match(r"(\S+?):(\d+):\d+: warning: code should be clang-formatted", line)
        if place:
            first.setdefault(place[1], place[2])
    return first


def main() -> int:
    formatter = shutil.which("clang-format-19")
    if formatter is None:
        print("clang-format-19 is not installed")
        return 77
    files = sources()
    assert len(files) > 200, f"only {len(files)} files found under {ROOT}"
    unformatted = findings(formatter, files)
    for name, line in unformatted.items():
        print(f"{name}:{line}: not formatted; run: clang-format-19 -i {name}")
    print(f"{len(files)} files, {len(unformatted)} not formatted")
    return 1 if unformatted else 0


if __name__ == "__main__":
    sys.exit(main())
