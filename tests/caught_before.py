"""Which planted bugs were caught before, by what: while nothing has changed that went into it, each is caught again, and need not be planted.

One JSON file: a digest of all inputs (sources, libraries, test programs, the script), and for each bug what caught it. Only those that were
caught are kept; any other input makes the file worth nothing.
"""

import hashlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path


class CaughtBefore:
    def __init__(self, file: Path | None, inputs: Iterable[Path]) -> None:
        """`file` None: nothing is kept, every bug is planted."""
        self._file = file
        self._inputs = _digest(inputs) if file else ""
        self._caught: dict[str, list] = {}
        self._lock = threading.Lock()
        if file and file.exists():
            kept = json.loads(file.read_text())
            if kept["inputs"] == self._inputs:
                self._caught = kept["caught"]

    def of(self, bug: tuple) -> list | None:
        return self._caught.get(repr(bug))

    def keep(self, bug: tuple, what: list) -> None:
        if not self._file:
            return
        with self._lock:
            self._caught[repr(bug)] = what
            self._write(self._file)

    def _write(self, file: Path) -> None:
        written = file.with_suffix(".new")
        written.write_text(json.dumps({"inputs": self._inputs, "caught": self._caught}, indent=1))
        written.replace(file)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(f"{file}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
