#!/usr/bin/env python3
"""benchmarks/step_trace without a card: its reader on traces made up here, whose gaps and overlaps are known; its lists of requests, stepped
as the scheduler steps them; and its driver with programs that answer as ours do."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks/step_trace"
sys.path.insert(0, str(FOLDER))
import reader  # noqa: E402
import run  # noqa: E402

HEADER = "start_ns,end_ns,blocks,threads,shared_bytes,stream,node,graph,name"
LAYER = (("norm", 2_000), ("wide_tiles_sm90<quire::bf16, 4>", 10_000), ("rope_kv_write_chunks<x>", 2_500), ("decode_attention<a, b>", 20_000))


def expect(what: str, got, wanted) -> list[str]:
    return [] if got == wanted else [f"{what}: got {got!r}, wanted {wanted!r}"]


def a_trace(steps: int, graphs: int = 2, layers: int = 5, sizes: tuple[int, ...] = (1,)) -> str:
    """Steps 50 us apart, of graphs in turn. The product begins 500 ns before the norm has ended; all else 300 ns behind what was before. Between the steps a
    kernel of no graph, and, where all steps are of one size, a graph of one kernel."""
    lines, now = [HEADER], 1_000_000
    for step in range(steps):
        lines.append(f"{now - 9_000},{now - 8_000},1,32,0,7,0,0,\"prefill\"")
        lines.append(f"{now - 7_000},{now - 6_000},1,32,0,7,900,9,\"copy_words\"") if step % 2 and len(sizes) == 1 else None
        for node, (name, took) in enumerate([("embed", 1_000), *LAYER * layers, ("head", 5_000)], 1):
            took *= (size := sizes[step % len(sizes)])
            start = now + (-500 if name.startswith("wide") else 300)
            lines.append(f"{start},{start + took},{132 * size},256,1024,7,{node + 100 * (step % graphs)},{step % graphs + 1},\"{name}\"")
            now = start + took
        now += 50_000
    return "\n".join(lines) + "\n"


def check_reader(folder: Path, graphs: int) -> list[str]:
    path = folder / "trace.csv"
    path.write_text(a_trace(30, graphs) + "1,2,3")  # cut off within a line
    found = reader.summary(reader.read(str(path)), count=6)
    rows = {row["name"]: (row["us"], row["gap_us"], row["adds_us"]) for row in found["layer"]}
    layer = 20.3 + 2.3 + 9.5 + 2.8
    return [
        *expect("steps and their kernels", (found["steps"], found["kernels"]), (6, 22)),
        *expect("a layer in its order", [row["name"] for row in found["layer"]], ["rope_kv_write_chunks", "decode_attention", "norm", "wide_tiles_sm90"]),
        *expect("a kernel behind another", rows["decode_attention"], (20.0, 0.3, 20.3)),
        *expect("a kernel that begins early", rows["wide_tiles_sm90"], (10.0, -0.5, 9.5)),
        *expect("layers", found["layers_us"], [round(layer, 2)] * 4),
        *expect("a step", found["step_us"], round(1.0 + 5 * layer + 5.3, 1)),
        *expect("what is no whole layer", round(sum(row["adds_us"] for row in found["rest"]), 1), round(1.0 + layer + 5.3, 1)),
        *expect("the text", "a layer" in reader.text_of(found) and "34.9" in reader.text_of(found), True),
    ]


def check_sizes(folder: Path) -> list[str]:
    """Steps of twice the blocks take twice as long: those of one size are not counted with the other's."""
    path = folder / "trace.csv"
    path.write_text(a_trace(30, sizes=(2, 1, 2)))
    row = next(row for row in reader.summary(reader.read(str(path)), count=2)["layer"] if row["name"] == "decode_attention")
    return expect("kernels of one size", row["us"] / row["blocks"], 20.0 / 132)


def check_what_is_refused(folder: Path) -> list[str]:
    row = "5,6,1,1,0,7,1,1,\"rope_kv_write\"\n"
    bad = {
        "no column": ("start_ns,end_ns\n1,2\n", "has no column blocks"),
        "no number": (f"{HEADER}\nsoon,6,1,1,0,7,1,1,\"rope\"\n", "line 2: invalid literal for int() with base 10: 'soon'"),
        "no graphs": (f"{HEADER}\n5,6,1,1,0,7,0,0,\"rope\"\n", "holds no two steps"),
        "one layer": (f"{HEADER}\n{row * 3}", "no two kernels of a step hold `rope_kv_write`"),
    }
    found = []
    for name, (text, said) in bad.items():
        path = folder / "bad.csv"
        path.write_text(text)
        done = subprocess.run([sys.executable, str(FOLDER / "reader.py"), str(path)], capture_output=True, text=True)
        found += expect(f"status of {name}", done.returncode, 1)
        found += [] if said in done.stderr and "Traceback" not in done.stderr else [f"{name}: wanted `{said}`, it said `{done.stderr[-300:]}`"]
    return found


def check_ending_together() -> list[str]:
    """Stepped here: each step gives the running requests a token, and what is left of its tokens to prompts, in order."""
    lengths = run.ending_together(requests=40, prompt_tokens=100, step_tokens=250, steps=7)
    prompts, outputs = [p for p, _ in lengths], [n for _, n in lengths]
    made, last_steps = [0] * 40, [0] * 40
    for step in range(1, 200):
        running = [i for i in range(40) if prompts[i] == 0 and made[i] < outputs[i]]
        for i in running:
            made[i] += 1
            last_steps[i] = step
        left = 250 - len(running)
        for i in range(40):
            taken = min(left, prompts[i])
            prompts[i], left = prompts[i] - taken, left - taken
            if taken and prompts[i] == 0:
                made[i] = 1  # the prompt's step gives the first
    return [*expect("all end in one step", len(set(last_steps)), 1), *expect("all their tokens", made, outputs), *expect("the last one's", outputs[-1], 8)]


FAKE = """#!{python}
import json, os, sys
if "placement" in sys.argv:
    count = int(sys.argv[sys.argv.index("--placements") + 1])
    lines = [{{"part": "placement", "name": f"{{i}} from 0x7f", "rounds_us": [5130.0, 5140.0, 5250.0], "read_gb_per_s": [3090.0]}} for i in range(count)]
    json.dump([{{"part": "card", "read_gb_per_s": 3096.0}}, *lines], open(sys.argv[sys.argv.index("--json") + 1], "w"))
elif "cascade" in sys.argv:
    us = {{"4": 35.04, "16": 39.5}}[sys.argv[sys.argv.index("--cascade-layers") + 1]]
    json.dump([{{"part": "card"}}, {{"part": "cascade", "name": "64x(4096+96)", "us": us}}], open(sys.argv[sys.argv.index("--json") + 1], "w"))
elif os.environ.get("FAIL"):
    sys.exit(3)
else:
    work = json.load(open(sys.argv[sys.argv.index("--workloads") + 1]))[0]
    assert "requests" not in work or os.path.exists(work["requests"])
    json.dump([{{"name": work["name"], "rounds": [{{"ms_per_decode_step": 7.15}}] * work["rounds"]}}], sys.stdout)
    if "QUIRE_KERNEL_TRACE" in os.environ:
        assert os.path.exists(os.environ["CUDA_INJECTION64_PATH"])
        open(os.environ["QUIRE_KERNEL_TRACE"], "w").write({trace!r})
"""


def check_driver(folder: Path) -> list[str]:
    for name in ("quire-offline", "quire_cuda_attention_bench", "quire_cuda_step_bench"):
        program = folder / name
        program.write_text(FAKE.format(python=sys.executable, trace=a_trace(12)))
        program.chmod(0o755)
    (folder / "tracer.so").touch()
    command = [str(FOLDER / "run.py"), "--programs", str(folder), "--out", str(folder / "out"), "--tracer", str(folder / "tracer.so"), "--processes", "3"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode != 0:
        return [f"the driver ended with {done.returncode}: {done.stderr[-500:]}"]
    results = json.loads((folder / "out/step_trace.json").read_text())
    first = results["workloads"]["64 on a prefix of 4096"]
    failed = subprocess.run([sys.executable, *command], capture_output=True, text=True, env={"FAIL": "1"})
    return [
        *expect("workloads", list(results["workloads"]), [workload["name"] for _, _, workload, _ in run.WORKLOADS]),
        *expect("untraced beside traced", (first["untraced_ms_per_step"], first["steps"]), ([7.15] * 3, 10)),
        *expect("a prefix by itself", results["prefix_alone"], {"4": {"64x(4096+96)": 35.04}, "16": {"64x(4096+96)": 39.5}}),
        *expect("processes and places", [len(p["placements"]) for p in results["places"]], [16, 2, 2, 2]),
        *expect("the text", "process 3   1 from 0x7f                   5140.0 us (5130.0-5250.0), bare read 3090 GB/s" in done.stdout, True),
        *expect("a program that fails", (failed.returncode, "prefix-untraced ended with 3" in failed.stderr), (1, True)),
    ]


def main() -> int:
    problems = check_ending_together()
    with tempfile.TemporaryDirectory() as folder:
        for check in (lambda f: check_reader(f, 1), lambda f: check_reader(f, 2), check_sizes, check_what_is_refused, check_driver):
            problems += check(Path(folder))
    print("\n".join(problems) or "the trace's reader, lists and driver hold")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
