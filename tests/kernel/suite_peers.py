#!/usr/bin/env python3
"""The suite's scripts for peers where no peer is: every Python file under benchmarks compiles; peers.py and peer_engines.py run whole, in
the sizes of a card, over what stands in for torch, FlashInfer, vLLM and transformers (fake_peers), and give every line that the table
sets beside ours; without torch, or where a peer refuses, they say who is absent and why, and go on. Not whether the peers' own
interfaces are those: only a machine that has them shows that."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks/suite"))
import peer_engines  # noqa: E402
import table  # noqa: E402

FAKES = Path(__file__).resolve().parent / "fake_peers"


def check_compiles() -> list[str]:
    found = []
    for file in sorted((ROOT / "benchmarks").rglob("*.py")):
        try:
            compile(file.read_text(), str(file), "exec")
        except SyntaxError as fault:
            found.append(f"{file.relative_to(ROOT)}: {fault}")
    return found


def results_of(script: str, arguments: list[str], replaced: dict[str, str] | None = None) -> dict | str:
    """What the script wrote, or how it failed. `replaced`: modules that stand before the fakes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (replaced or {}).items():
            (Path(folder) / name).write_text(text)
        out = Path(folder) / "out.json"
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{FAKES}", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, str(ROOT / "benchmarks/suite" / script), "--json", str(out), *arguments], capture_output=True,
                              text=True, env=environment, timeout=120)
        return json.loads(out.read_text()) if done.returncode == 0 else f"{script} {arguments} ended with {done.returncode}: {done.stderr[-400:]}"


class Asked(table.Results):
    """Notes what the table looks for among the peers."""

    def __init__(self):
        super().__init__({"parts": {}})
        self.names = []

    def ours(self, part: str, name: str) -> dict:
        return {"us": 1.0, "rounds_us": [1.0]}

    def peers(self, part: str, name: str) -> list[dict]:
        self.names.append((part, name))
        return []


NO_PEER = {("cascade", "256x(32768+256)"), ("rows", "rope + KV write 8192x6144")}  # nobody has these


def check_kernels() -> list[str]:
    asked, lines = Asked(), []
    table.kernel_rows(asked)
    for kind in ("step", "attention"):
        for size in ([], ["--tiny"]):
            got = results_of("peers.py", ["--kind", kind, *size])
            if isinstance(got, str) or got["absent"]:
                return [f"peers.py --kind {kind} {size}: {got if isinstance(got, str) else got['absent']}"]
            lines += got["lines"] if not size else []
    given = {(line["part"], line["name"]) for line in lines}
    found = [f"the table asks the peers for {name}, which peers.py does not give" for name in asked.names if name not in given | NO_PEER]
    for part, peer in (("decode", "FlashInfer"), ("decode", "cuDNN"), ("decode", "FLASH"), ("decode", "FlexAttention"), ("prefill", "cuDNN"),
                       ("prefill", "FlexAttention"), ("matmul", "cuBLAS"), ("rows", "torch.compile"), ("sampling", "FlashInfer")):
        if not any(line["part"] == part and peer in line["peer"] and line["us"] > 0 for line in lines):
            found.append(f"no line of {peer} for {part}")
    return found


def check_engines() -> list[str]:
    got = results_of("peer_engines.py", [])
    if isinstance(got, str) or got["peers_absent"]:
        return [str(got)]
    rows = {row.what for row in table.engine_rows(table.Results({"parts": {}}))}
    by_peer = {peer: {line["what"] for line in got["lines"] if line["peer"] == peer} for peer in ("vLLM", "transformers")}
    alone = {what for what, (_, batch, _, _) in peer_engines.STEPS.items() if batch == 1}
    found = [f"the table has no row {what}" for what in peer_engines.STEPS if what not in rows]
    return found + [f"{peer} gave {by_peer[peer]}" for peer, wanted in (("vLLM", set(peer_engines.STEPS)), ("transformers", alone)) if by_peer[peer] != wanted]


def check_absent() -> list[str]:
    missing, broken = "raise ImportError('none here')\n", "class BatchDecodeWithPagedKVCacheWrapper:\n    def __init__(self, *_, **__):\n        raise RuntimeError('too old')\n"
    found = []
    for what, script, arguments, replaced, key, absent, left in (
        ("no torch", "peers.py", ["--kind", "step"], {"torch.py": missing}, "absent", {"torch": "none here"}, False),
        ("a FlashInfer that refuses", "peers.py", ["--kind", "attention"], {"flashinfer.py": broken}, "absent", {"FlashInfer decode": "RuntimeError: too old"}, True),
        ("no vLLM", "peer_engines.py", [], {"vllm.py": missing}, "peers_absent", {"vLLM": "ImportError: none here"}, True),
    ):
        got = results_of(script, arguments, replaced)
        if isinstance(got, str) or got[key] != absent or bool(got["lines"]) != left:
            found.append(f"{what}: {got if isinstance(got, str) else (got[key], len(got['lines']))}")
    return found


def main() -> int:
    problems = check_compiles() + check_kernels() + check_engines() + check_absent()
    print("\n".join(problems) or "the peers' scripts hold over their stand-ins")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
