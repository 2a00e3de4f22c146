"""The pages in docs/ against the binary and the contract.

Method: the reference pages are made anew and compared; every flag that any page names must exist in the command line.
"""

import json
import re
import subprocess
import sys

from conftest import BINARY, MODEL, ROOT, quire

# Flags of other programs that the pages show.
FOREIGN = {"--only", "--dir", "--insecure", "--protoset", "--call", "--preset", "--build", "--label", "--help"}


def test_reference_pages_list_every_flag_and_field_as_it_is():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/reference.py", "--binary", BINARY, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def fields(value: object) -> object:
    """The shape of a JSON value: names, and of a list its first entry."""
    if isinstance(value, dict):
        return {name: fields(part) for name, part in value.items()}
    return [fields(value[0])] if isinstance(value, list) and value else None


def test_the_page_on_the_command_line_shows_what_generate_prints():
    sample = re.search(r"```json\n(.*?)```", (ROOT / "docs/commands.md").read_text(), re.DOTALL).group(1)
    arguments = ["generate", "--model", MODEL, "--prompt", "Once", "--max-tokens", "1", "--temperature", "0", "--logprobs", "1", "--output", "json"]
    printed = quire(*arguments).stdout
    assert fields(json.loads(sample)) == fields(json.loads(printed))


def test_every_number_that_a_request_may_carry_has_its_range_and_default():
    seen = set()
    message = ""
    for line in (ROOT / "docs/messages.md").read_text().splitlines():
        message = line.strip("# `") if line.startswith("## ") else message
        row = re.fullmatch(r"\| `(\w+)` \| \d+ \| `([^`]*)`[^|]* \| (.*) \|", line)
        if not row or message not in ("GenerateRequest", "KvRetention", "SamplingParams", "DetokenizeRequest"):
            continue
        field, kind, what = row.groups()
        if not re.search(r"int|double|float", kind):
            continue
        seen.add(field)
        assert re.search(r"[\[(](-?\d|n, )|from 0 to|At most \d|At most max_tokens|Any 32-bit", what), f"{message}.{field} has no range: {what}"
        assert "efault" in what or message == "DetokenizeRequest", f"{message}.{field} has no default: {what}"
    assert {"temperature", "logit_bias", "max_tokens", "seed", "priority", "ttl_ms", "token_ids"} <= seen


def test_pages_name_no_flag_that_does_not_exist():
    known = set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs/flags.md").read_text())) | FOREIGN
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", page.read_text()))
        assert named <= known, f"{page.name} names {sorted(named - known)}"
