"""What a step's kernels take in place: reads what kernel_trace.cc wrote and prints the kernels of a layer in their order, medians over
layers and steps, in us: how long each runs, how far it begins behind the end of the one before (negative: beside it), and what it adds to
the step, from end to end.

    python3 benchmarks/step_trace/reader.py trace.csv --json trace.json"""

import argparse
import csv
import json
import statistics
import sys

COLUMNS = ("start_ns", "end_ns", "blocks", "threads", "shared_bytes", "node", "graph")


class BadTrace(Exception):
    pass


def read(path: str) -> list[dict]:
    """The kernels of captured graphs, by their start. A last line that was cut off is left out."""
    kernels = []
    with open(path, newline="") as file:
        lines = csv.DictReader(file)
        missing = [c for c in (*COLUMNS, "name") if c not in (lines.fieldnames or [])]
        if missing:
            raise BadTrace(f"{path} has no column {missing[0]}")
        for row in lines:
            if row["name"] is None:
                continue
            try:
                kernel = {c: int(row[c]) for c in COLUMNS}
            except ValueError as fault:
                raise BadTrace(f"{path} line {lines.line_num}: {fault}") from None
            if kernel["node"] != 0:
                kernels.append(kernel | {"name": row["name"].split("<")[0]})
    return sorted(kernels, key=lambda k: k["start_ns"])


def steps_of(kernels: list[dict]) -> list[list[dict]]:
    """Another graph begins a step, and so does a node that comes again: a graph runs each of its nodes once."""
    steps, seen, graph = [], set(), None
    for kernel in kernels:
        if kernel["graph"] != graph or kernel["node"] in seen:
            steps.append([])
            seen, graph = set(), kernel["graph"]
        seen.add(kernel["node"])
        steps[-1].append(kernel)
    return steps


def last_alike(steps: list[list[dict]], count: int) -> list[list[dict]]:
    """The last `count` steps of the kernels that ran most often lately, whichever graph of theirs it was. The very last may be cut off."""
    shapes = [tuple((k["name"], k["blocks"]) for k in step) for step in steps[:-1]]
    if not shapes:
        raise BadTrace("the trace holds no two steps that ran as graphs")
    lately = shapes[-4 * count:]
    usual = max(set(lately), key=lately.count)
    return [step for step, shape in zip(steps, shapes) if shape == usual][-count:]


def medians(steps: list[list[dict]]) -> list[dict]:
    """One row a kernel of the step."""
    ends = []  # per step, of each kernel: when all before it have ended
    for step in steps:
        latest = [step[0]["start_ns"]]
        for kernel in step:
            latest.append(max(latest[-1], kernel["end_ns"]))
        ends.append(latest)

    def median(value) -> float:
        return statistics.median(value(step, before) for step, before in zip(steps, ends)) / 1e3

    return [{key: kernel[key] for key in ("name", "blocks", "threads", "shared_bytes")}
            | {"us": median(lambda step, before, i=i: step[i]["end_ns"] - step[i]["start_ns"]),
               "gap_us": median(lambda step, before, i=i: step[i]["start_ns"] - before[i]),
               "adds_us": median(lambda step, before, i=i: before[i + 1] - before[i])} for i, kernel in enumerate(steps[-1])]


def layer_rows(layers: list[list[dict]]) -> list[dict]:
    lengths = [len(layer) for layer in layers]
    usual = max(set(lengths), key=lengths.count)
    alike = [layer for layer in layers if len(layer) == usual]
    return [row | {key: round(statistics.median(layer[i][key] for layer in alike), 2) for key in ("us", "gap_us", "adds_us")}
            for i, row in enumerate(alike[0])]


def summary(kernels: list[dict], layer_begins: str = "rope_kv_write", count: int = 10) -> dict:
    """layer_begins: part of the name of a kernel that each layer runs once. A layer is what lies between two of them."""
    steps = last_alike(steps_of(kernels), count)
    rows = medians(steps)
    cuts = [i for i, row in enumerate(rows) if layer_begins in row["name"]]
    if len(cuts) < 2:
        raise BadTrace(f"no two kernels of a step hold `{layer_begins}` in their names")
    layers = [rows[a:b] for a, b in zip(cuts, cuts[1:])]
    return {"steps": len(steps), "kernels": len(rows),
            "step_us": round(statistics.median(max(k["end_ns"] for k in s) - s[0]["start_ns"] for s in steps) / 1e3, 1),
            "layers_us": [round(sum(row["adds_us"] for row in layer), 2) for layer in layers],
            "layer": layer_rows(layers),
            "rest": [{"name": row["name"], "adds_us": round(row["adds_us"], 2)} for row in rows[:cuts[0]] + rows[cuts[-1]:]]}


def text_of(result: dict) -> str:
    lines = [f"{result['steps']} steps of {result['kernels']} kernels, {result['step_us']} us each",
             f"{'kernel of a layer':<40}{'blocks':>7}{'threads':>8}{'shared':>8}{'us':>9}{'gap':>8}{'adds':>8}"]
    for row in result["layer"]:
        lines.append(f"{row['name'][:39]:<40}{row['blocks']:>7}{row['threads']:>8}{row['shared_bytes']:>8}"
                     f"{row['us']:>9.2f}{row['gap_us']:>8.2f}{row['adds_us']:>8.2f}")
    total = {key: sum(row[key] for row in result["layer"]) for key in ("us", "adds_us")}
    lines.append(f"{'a layer':<63}{total['us']:>9.1f}{'':>8}{total['adds_us']:>8.1f}")
    lines.append(f"{'before and behind the whole layers':<80}{sum(row['adds_us'] for row in result['rest']):>8.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--layer-begins", default="rope_kv_write", help="part of the name of a kernel that each layer runs once")
    parser.add_argument("--steps", type=int, default=10, help="how many of the last steps")
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    try:
        result = summary(read(args.trace), args.layer_begins, args.steps)
    except (BadTrace, OSError) as fault:
        print(f"reader.py: {fault}", file=sys.stderr)
        return 1
    print(text_of(result))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
