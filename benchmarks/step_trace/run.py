#!/usr/bin/env python3
"""Where a step's time goes, on a card, in one command of a minute: for each workload its step untraced and then traced, kernel by
kernel in its graph (reader.py says what of); attention on a shared prefix by itself, by few layers, whose prefixes L2 holds for the greater
part, and by many; and whether the products of one row depend on where their weights lie, on the process or on the time. Beside it all the
card's clocks, every 100 ms.

    python3 benchmarks/step_trace/run.py --programs build/card --out build/step_trace

Needs a C++ compiler and a CUDA toolkit with CUPTI (extras/CUPTI), for the tracer, and Python's standard library."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import reader  # noqa: E402

CLOCKS = "timestamp,clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"


def work(name: str, **more) -> dict:
    return {"name": name, "batch": 1, "n": 1, "prompt_tokens": 128, "new_tokens": 64, "shared_prefix_tokens": 0, "rounds": 1, **more}


def ending_together(requests: int, prompt_tokens: int, step_tokens: int, steps: int) -> list[tuple[int, int]]:
    """Lengths of requests whose prompts come one after another and whose last tokens all come in one step, `steps` steps after the last
    prompt: so the last steps of a run hold all of them."""
    ends, step, taken, done = [], 0, 0, 0
    while done < requests:
        step += 1
        taken += step_tokens - done  # what the running ones leave of a step
        while done < requests and taken >= prompt_tokens:
            taken, done = taken - prompt_tokens, done + 1
            ends.append(step)
    return [(prompt_tokens, ends[-1] + steps - end + 1) for end in ends]


# name, layers of the 8B shape, the workload, flags. 256 sequences on 8 layers: a layer takes as long, and their prompts a quarter.
WORKLOADS = (
    ("prefix", 32, work("64 on a prefix of 4096", batch=64, prompt_tokens=64, shared_prefix_tokens=4096), ("--kv-cache-bytes", "9500000000", "--gemm-tuning-ms", "0")),
    ("one", 32, work("batch 1"), ("--gemm-tuning-ms", "0")),
    ("many", 8, work("256 at 1k, 8 layers", batch=256, prompt_tokens=1024, requests="many.csv"), ("--gemm-tuning-ms", "1500")),
)


class Run:
    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, args.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.results = {"workloads": {}, "prefix_alone": {}, "places": []}

    def program(self, name: str) -> str:
        for folder in ("", "benchmarks/cuda", "benchmarks/offline"):
            if (path := self.args.programs / folder / name).exists():
                return str(path.resolve())
        raise SystemExit(f"step_trace: {self.args.programs} holds no {name}")

    def call(self, command: list[str], log: str, **environment: str) -> None:
        with open(self.out / log, "w") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}, timeout=self.args.limit_s)
        if done.returncode != 0:
            raise SystemExit(f"step_trace: {Path(command[0]).name} ended with {done.returncode} (log: {self.out / log})")

    # ---- the tracer --------------------------------------------------------------------------------------------------------------
    def tracer(self) -> Path:
        if self.args.tracer:
            return self.args.tracer.resolve()
        cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
        cupti = self.args.cupti or cuda / "extras/CUPTI"
        compiler = shutil.which("c++")
        found = [file for folder in ("lib64", "lib") for file in sorted((cupti / folder).glob("libcupti.so*"))]
        if compiler is None or not (cupti / "include/cupti.h").exists() or not found:
            raise SystemExit(f"step_trace: the tracer needs a C++ compiler and CUPTI, whose include/cupti.h and lib/libcupti.so are not in {cupti} "
                             "(--cupti DIR; Python's package nvidia-cuda-cupti is such a folder, nvidia/cu13)")
        library = self.out / "libkernel_trace.so"
        self.call([compiler, "-std=c++20", "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "kernel_trace.cc"), f"-I{cuda}/include",
                   f"-I{cupti}/include", str(found[0]), f"-Wl,-rpath,{found[0].parent}"], "tracer.log")
        return library

    # ---- steps -------------------------------------------------------------------------------------------------------------------
    def shape(self, layers: int) -> Path:
        config = json.loads((ROOT / "benchmarks/shapes/llama-3.1-8b/config.json").read_text())
        folder = self.out / f"shape-{layers}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        return folder

    def offline(self, name: str, layers: int, workload: dict, flags: tuple[str, ...], **environment: str) -> dict:
        (self.out / f"{name}.workload.json").write_text(json.dumps([workload]))
        answer = self.out / f"{name}.json"
        command = [self.program("quire-offline"), "--model", str(self.shape(layers)), "--weights", "random", "--device", "cuda", "--dtype", "bf16",
                   "--kv-cache-dtype", "bf16", "--workloads", str(self.out / f"{name}.workload.json"), "--output", "json", *flags]
        with open(answer, "w") as out, open(self.out / f"{name}.log", "w") as log:
            done = subprocess.run(command, stdout=out, stderr=log, env={**os.environ, **environment}, timeout=self.args.limit_s, cwd=self.out)
        if done.returncode != 0:
            raise SystemExit(f"step_trace: {name} ended with {done.returncode} (log: {self.out / name}.log)")
        return json.loads(answer.read_text())[0]

    def steps(self, library: Path) -> None:
        lengths = ending_together(requests=256, prompt_tokens=1024, step_tokens=2048, steps=30)
        (self.out / "many.csv").write_text("prompt_tokens,output_tokens\n" + "".join(f"{p},{n}\n" for p, n in lengths))
        for name, layers, workload, flags in WORKLOADS:
            plain = {key: value for key, value in workload.items() if key != "requests"} | {"rounds": 3}
            if "requests" in workload:  # a step is timed while all decode: the first must outlast the last one's prompt
                plain |= {"new_tokens": 176, "rounds": 1}
            untraced = self.offline(f"{name}-untraced", layers, plain, flags)
            csv = self.out / f"{name}.csv"
            self.offline(f"{name}-traced", layers, workload, flags, CUDA_INJECTION64_PATH=str(library), QUIRE_KERNEL_TRACE=str(csv))
            found = reader.summary(reader.read(str(csv)))
            csv.unlink()  # tens of MB
            found["untraced_ms_per_step"] = [round(r["ms_per_decode_step"], 3) for r in untraced["rounds"]]
            self.results["workloads"][workload["name"]] = found
            print(f"\n{workload['name']}: a step untraced {found['untraced_ms_per_step']} ms\n{reader.text_of(found)}", flush=True)

    # ---- attention on a prefix, by itself ------------------------------------------------------------------------------------------
    def prefix_alone(self) -> None:
        for layers in (4, 16):
            file = self.out / f"prefix-alone-{layers}.json"
            self.call([self.program("quire_cuda_attention_bench"), "--part", "cascade", "--pool-gib", "6", "--shared", "64x(4096+96)",
                       "--cascade-layers", str(layers), "--json", str(file)], f"prefix-alone-{layers}.log")
            found = [line for line in json.loads(file.read_text()) if line["part"] == "cascade"]
            self.results["prefix_alone"][layers] = {line["name"]: round(line["us"], 2) for line in found}
            print(f"{layers} layers in turn, us: {self.results['prefix_alone'][layers]}", flush=True)

    # ---- places ------------------------------------------------------------------------------------------------------------------
    def places(self) -> None:
        """One process with many placements of the weights, then several with two."""
        for process, placements in enumerate([16] + [2] * self.args.processes):
            file = self.out / f"places-{process}.json"
            self.call([self.program("quire_cuda_step_bench"), "--part", "placement", "--placements", str(placements), "--rounds", "5", "--json", str(file)],
                      f"places-{process}.log")
            card, *lines = json.loads(file.read_text())
            found = [{"name": line["name"], "us": line["rounds_us"], "read_gb_per_s": line["read_gb_per_s"]} for line in lines if line["part"] == "placement"]
            self.results["places"].append({"process": process, "read_gb_per_s": card["read_gb_per_s"], "placements": found})
            print(places_text(self.results["places"][-1]), flush=True)

    def all(self) -> None:
        library = self.tracer()
        clocks = None
        if shutil.which("nvidia-smi"):
            clocks = subprocess.Popen(["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv", "-lms", "100"], stdout=open(self.out / "clocks.csv", "w"))
        try:
            self.steps(library)
            self.prefix_alone()
            self.places()
        finally:
            if clocks is not None:
                clocks.terminate()
            self.results["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            (self.out / "step_trace.json").write_text(json.dumps(self.results, indent=1) + "\n")


def places_text(found: dict) -> str:
    lines = []
    for place in found["placements"]:
        middle = statistics.median(place["us"])
        lines.append(f"process {found['process']:<3} {place['name']:<26}{middle:>10.1f} us ({min(place['us']):.1f}-{max(place['us']):.1f}), "
                     f"bare read {statistics.median(place['read_gb_per_s']):.0f} GB/s")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True, help="a build directory, or a folder with quire-offline, quire_cuda_attention_bench and quire_cuda_step_bench")
    parser.add_argument("--out", type=Path, required=True, help="step_trace.json, clocks.csv and logs")
    parser.add_argument("--cupti", type=Path, help="CUPTI's folder, with include/ and lib64/ or lib/; default the toolkit's extras/CUPTI")
    parser.add_argument("--tracer", type=Path, help="kernel_trace.cc as built before")
    parser.add_argument("--processes", type=int, default=10, help="of two placements each")
    parser.add_argument("--limit-s", type=float, default=60, help="of any one program")
    Run(parser.parse_args()).all()


if __name__ == "__main__":
    main()
