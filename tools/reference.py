"""Writes the reference pages docs/flags.md (from each command's --help) and docs/messages.md (from proto/quire/v1).

  python3 tools/reference.py [--binary build/release/quire] [--check]

With --check nothing is written: exit code 1, and the lines that differ, where a page is not what it would be. A test runs that, so a
flag or field cannot come, go or change its default without the page.
"""

import argparse
import dataclasses
import difflib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


# ---- flags ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag as one command's help tells it."""

    name: str
    kind: str
    text: str
    default: str


def commands_of(binary: Path) -> list[str]:
    """The commands that the binary lists, "inspect kv" among them."""
    usage = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^  (\S+(?: \S+)?)\s{2,}\S", usage, flags=re.M)


def flags_of(binary: Path, command: str) -> list[Flag]:
    """The flags of one command, in its own order."""
    text = subprocess.run([binary, *command.split(), "--help"], capture_output=True, text=True, check=True).stdout
    flags = []
    text = re.sub(r"\n {10,}", "  ", text)  # a long name has its text on the next line
    for line in text.splitlines():
        if not line.startswith("  ") or line.lstrip().startswith("-h,"):
            continue
        parts = re.fullmatch(r"  (--)?(\S+)(?: (\S+))?\s{2,}(.*) \[default: (.*)\] \[env: (QUIRE_\w+)\]", line)
        if parts is None:
            sys.exit(f"quire {command} --help has a line that is not understood: {line}")
        dashes, name, kind, what, default, variable = parts.groups()
        if variable != "QUIRE_" + name.upper().replace("-", "_"):
            sys.exit(f"quire {command} --help: {name} is {variable} in the environment")
        flags.append(Flag((dashes or "") + name, kind or "", what, default))
    return flags


def cell(text: str) -> str:
    """A text as a table takes it."""
    return text.replace("|", "\\|")


def flags_page(binary: Path) -> str:
    """docs/flags.md."""
    commands = commands_of(binary)
    holders: dict[Flag, list[str]] = {}
    for command in commands:
        for flag in flags_of(binary, command):
            holders.setdefault(flag, []).append(command)
    lines = [
        "# Every flag",
        "",
        "Made by `tools/reference.py` from `quire COMMAND --help`; a test compares the two. What the commands are for: [commands.md](commands.md).",
        "`--max-tokens` is `QUIRE_MAX_TOKENS` in the environment and `max_tokens` in a `--config` file, and so for each.",
        "",
    ]
    groups: dict[tuple[str, ...], list[Flag]] = {}
    for flag, used in holders.items():
        groups.setdefault(tuple(used), []).append(flag)
    for used in sorted(groups, key=lambda used: (-len(used), [commands.index(c) for c in used])):
        lines += ["## " + ", ".join(f"`{c}`" for c in used), "", "| flag | what | default |", "|---|---|---|"]
        for flag in groups[used]:
            lines.append(f"| `{cell(' '.join((flag.name, flag.kind)).strip())}` | {cell(flag.text)} | {cell(flag.default)} |")
        lines.append("")
    return "\n".join(lines)


# ---- messages ---------------------------------------------------------------------------------------------------------------

DECLARATION = re.compile(r"(message|enum|oneof|service) (\w+) \{(\})?")
FIELD = re.compile(r"((?:optional |repeated )?[\w.]+(?:<[^>]*>)?) (\w+) = (\d+);")
VALUE = re.compile(r"(\w+) = (\d+);(?:\s*// (.*))?")
CALL = re.compile(r"rpc (\w+)\((\w+)\) returns \(((?:stream )?\w+)\);")


def head_of(kind: str) -> list[str]:
    """The first lines of a table."""
    columns = {"message": "field | number | type", "enum": "value | number", "service": "call | takes | gives"}[kind]
    return [f"| {columns} | what |", "|" + "---|" * (columns.count("|") + 2)]


def messages_of(text: str) -> list[str]:
    """The tables of one .proto file. Comments stand over what they are about; a nested message has a table of its own."""
    tables: dict[str, list[str]] = {}
    scope: list[tuple[str, str]] = []
    comment: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comment.append(line[2:].strip())
            continue
        what = " ".join(comment) if not any(c.startswith("----") for c in comment) else ""
        comment = []
        names = [name for kind, name in scope if kind != "oneof"]
        rows = tables.get(".".join(names), [])
        if opened := DECLARATION.match(line):
            if opened[1] != "oneof":
                tables[".".join([*names, opened[2]])] = ([what, ""] if what else []) + (["No fields."] if opened[3] else head_of(opened[1]))
            if not opened[3]:
                scope.append((opened[1], opened[2]))
        elif line == "}":
            scope.pop()
        elif call := CALL.match(line):
            rows.append(f"| `{call[1]}` | `{call[2]}` | `{call[3]}` | {cell(what)} |")
        elif field := FIELD.match(line):
            alone = f" (one of `{scope[-1][1]}`)" if scope[-1][0] == "oneof" else ""
            rows.append(f"| `{field[2]}` | {field[3]} | `{field[1]}`{alone} | {cell(what)} |")
        elif scope and scope[-1][0] == "enum" and (value := VALUE.match(line)):
            rows.append(f"| `{value[1]}` | {value[2]} | {cell(value[3] or what)} |")
        elif scope and line:
            sys.exit(f"a line of a .proto file is not understood: {line}")
    return [line for name, rows in tables.items() for line in ["", f"## `{name}`", "", *rows]]


def messages_page() -> str:
    """docs/messages.md."""
    lines = [
        "# Every message and field",
        "",
        "Made by `tools/reference.py` from `proto/quire/v1`; a test compares the two. How the calls are used: [wire.md](wire.md).",
        "A `sampling` field that is out of range is refused with `INVALID_ARGUMENT` and the field's name.",
    ]
    for name in ("service", "generation", "sampling"):
        lines += messages_of((ROOT / "proto/quire/v1" / f"{name}.proto").read_text())
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes or checks both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "build/release/quire")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = 0
    for name, page in (("flags.md", flags_page(args.binary)), ("messages.md", messages_page())):
        path = ROOT / "docs" / name
        if not args.check:
            path.write_text(page)
            continue
        written = path.read_text() if path.exists() else ""
        difference = list(difflib.unified_diff(written.splitlines(), page.splitlines(), f"docs/{name}", "as it would be", lineterm="", n=0))
        print("\n".join(difference))
        stale += bool(difference)
    if stale:
        print("run: python3 tools/reference.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
