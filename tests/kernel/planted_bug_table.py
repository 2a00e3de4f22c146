"""kernels/planted_bugs.md: what each planted bug is and which test of the shim catches it. Written by planted_bugs.py --write-table, read by its other runs."""
import dataclasses
import pathlib
import re

TITLE = """# Planted bugs, and the tests that catch them

Each line is a mistake that was made on purpose in a copy of a kernel, compiled for the host under the execution shim, and caught by the kernel's own
tests on a machine without a GPU. The first test that fails is named, with how many of those run fail beside it, and what the shim or the comparison
with the float64 reference says. `tests/kernel/planted_bugs.py` plants them; `./quire test --label kernel` plants all of them again
(cuda_planted_bugs, cuda_planted_product_bugs) and fails where a bug is not caught by the test named here, or where this table lacks a bug or has one
too many. Do not edit: the same commands with `--write-table` write it (`ctest -N -V -R cuda_planted` prints them).
"""

# What of a test's output gave the bug away, in words.
MEANS = {
    "values[": "values differ from the reference", "values differ": "values differ from the reference",
    "column_sums[": "column sums differ from the reference", "partials[": "partial results differ from the reference",
    "m 17": "a product of 17 rows differs from the reference", "m 64": "a product of 64 rows differs from the reference",
    "differs": "a second run differs from the first", "counter": "a counter is left that is not 0",
    "in flight": "shim: a read of shared memory that an asynchronous copy still writes", "race": "shim: two threads touch shared memory with no barrier between",
    "race: read": "shim: a read of shared memory that another thread writes, no barrier between",
    "race: write": "shim: a write to shared memory that another thread reads, no barrier between",
    "nobody wrote": "shim: a read of shared memory that nobody wrote", "outside every allocation": "shim: an access outside every allocation",
    "before wait_for_previous_kernel()": "shim: a read of what the kernel before may still write",
    "let_next_kernel_start()": "shim: the next kernel is let go before the one before is waited for",
}


@dataclasses.dataclass
class Row:
    bug: str
    file: str
    test: str
    others: int
    said: str

    def text(self) -> str:
        beside = f" (and {self.others} more)" if self.others else ""
        return f"| {self.bug} | {self.file} | {self.test}{beside} | {MEANS.get(self.said, self.said)} |"


def failed_tests(output: str) -> list[str]:
    """In the order of the run; the last is the one that was running if the program died in it."""
    failed = list(dict.fromkeys(re.findall(r"^\[  FAILED  \] ([\w/.]+)(?:,| \()", output, re.M)))
    begun = re.findall(r"^\[ RUN      \] ([\w/.]+)", output, re.M)
    done = set(re.findall(r"^\[       OK \] ([\w/.]+)", output, re.M)) | set(failed)
    return failed + [test for test in begun[-1:] if test not in done]


def sections(file: pathlib.Path) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith("## "):
            rows = found.setdefault(line[3:].split(" ")[0], [])
        elif match := re.fullmatch(r"\| (.+) \| (\S+\.\w+) \| (\S+?)(?: \(and (\d+) more\))? \| (.+) \|", line):
            rows.append(Row(match[1], match[2], match[3], int(match[4] or 0), match[5]))
    return found


def write(file: pathlib.Path, folder: str, rows: list[Row]) -> None:
    found = sections(file) | {folder: rows}
    text = TITLE
    for name in sorted(found):
        text += f"\n## {name} ({len(found[name])} bugs)\n| the bug | in | caught by | what is said |\n|---|---|---|---|\n"
        text += "".join(row.text() + "\n" for row in found[name])
    file.write_text(text)


def differences(file: pathlib.Path, folder: str, bugs: dict[str, str], caught: dict[str, list[str]]) -> list[str]:
    """bugs: the file of each bug of the folder; caught: for those that were planted, the tests that failed."""
    rows = {row.bug: row for row in sections(file).get(folder, [])}
    out = [f"has no line for: {name}" for name in bugs if name not in rows]
    out += [f"has a line for no bug: {name}" for name in rows if name not in bugs]
    out += [f"says that `{name}` is in {row.file}; it is in {bugs[name]}" for name, row in rows.items() if bugs.get(name, row.file) != row.file]
    return out + [f"says that {rows[name].test} catches `{name}`; it does not" for name, tests in caught.items()
                  if name in rows and rows[name].test not in tests]
