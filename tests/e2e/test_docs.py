"""The pages in docs/ against the binary and the contract.

Method: the reference pages are made anew and compared; every flag that any page names must exist in the command line.
"""

import itertools
import json
import re
import subprocess
import sys

import pytest
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


def test_the_page_on_flags_says_which_element_types_run_where():
    page = (ROOT / "docs/flags.md").read_text()
    assert re.search(r"`--dtype auto\\\|f32.*activations; auto = f32 on the CPU, the checkpoint's on cuda; f16 on cuda only", page)
    assert re.search(r"`--kv-cache-dtype auto.*; auto = dtype's; on cuda no other", page)
    model = ROOT / "tests/golden/families/qwen3"
    run = ("generate", "--model", model, "--prompt-ids", "5", "--max-tokens", "1", "--kv-cache-bytes", "1000000", "--output", "json")
    for device in ("cpu", "cuda-host"):
        for dtype, kv in itertools.product(("auto", "f32", "bf16", "f16"), repeat=2):
            done = quire(*run, "--device", device, "--dtype", dtype, "--kv-cache-dtype", kv)
            if "without the CUDA" in done.stderr or "no CUDA" in done.stderr:
                pytest.skip("this build has no CUDA executor")
            activations = dtype if dtype != "auto" else "f32"  # which is the checkpoint's type too
            works = activations != "f16" if device == "cpu" else kv in ("auto", activations)
            assert (done.returncode == 0) == works, f"{device} {dtype} {kv}: {done.stderr}"
