"""The table of a run: every line with the share of its roof, the ratio to the best peer, and the floor and target it is held to."""

import dataclasses

# What each line must reach on an H100, and the figure of vLLM 0.24.0 measured there on another day (2026-11-23), where there is one.
# `floor` and `target` are of the quantity named by `of`: "share" of the roof, "ratio" to the named peer, or a time.
EQUAL_DECODE = ("16x4096", "64x1024", "64x4096", "256x1024", "1x32768")


@dataclasses.dataclass
class Row:
    what: str
    value: float | None = None  # in `unit`
    unit: str = ""
    spread: float | None = None  # of the rounds: (most - least) / median
    rounds: int = 0  # of the engine; said where they are fewer than 5
    share: float | None = None  # of the roof
    peer: str = ""  # the best one
    ratio: float | None = None  # the peer's time over ours
    of: str = ""  # what floor and target bound: share | ratio | value | speedup
    floor: float | None = None
    target: float | None = None
    recorded: str = ""

    def bounded(self) -> float | None:
        return {"share": self.share, "ratio": self.ratio, "value": self.value, "speedup": self.value}.get(self.of)

    def verdict(self) -> str:
        got = self.bounded()
        if self.floor is None:
            return ""
        if got is None:
            return "not measured"
        smaller_is_better = self.of == "value"
        reaches = (lambda bound: got <= bound) if smaller_is_better else (lambda bound: got >= bound)
        return "target" if self.target is not None and reaches(self.target) else "floor" if reaches(self.floor) else "SHORT"


class Results:
    """A run's lines by name."""

    def __init__(self, results: dict):
        self.parts = results["parts"]
        self.card = next((self.parts[p]["card"] for p in ("kernels", "attention") if self.parts.get(p, {}).get("card")), {})

    def ours(self, part: str, name: str) -> dict | None:
        return next((line for p in self.parts.values() for line in p.get("ours", []) if line["part"] == part and line["name"] == name), None)

    def peers(self, part: str, name: str) -> list[dict]:
        return [line for p in self.parts.values() for line in p.get("peers", []) if line["part"] == part and line["name"] == name]

    def workload(self, part: str, name: str) -> dict | None:
        return next((w for w in self.parts.get(part, {}).get("workloads", []) if w.get("name") == name), None)

    def read_bytes_per_s(self) -> float:
        return self.card.get("read_gb_per_s", 0) * 1e9

    def operations_per_s(self) -> float:
        return self.parts.get("kernels", {}).get("card", {}).get("matmul_tflops", 0) * 1e12


def spread_of(rounds: list[float], median: float) -> float | None:
    return (max(rounds) - min(rounds)) / median if len(rounds) > 1 and median else None


def kernel_row(r: Results, part: str, name: str, what: str, peer: str = "", **bounds) -> Row:
    row = Row(what=what, unit="us", **bounds)
    line = r.ours(part, name)
    if line is None:
        return row
    row.value, row.spread = line["us"], spread_of(line["rounds_us"], line["us"])
    if line.get("roof_us"):
        row.share = line["roof_us"] / line["us"]
    rivals = [p for p in r.peers(part, name) if peer in p["peer"]]
    if rivals:
        best = min(rivals, key=lambda p: p["us"])
        row.peer, row.ratio = best["peer"], best["us"] / line["us"]
    return row


def kernel_rows(r: Results) -> list[Row]:
    rows = [kernel_row(r, "decode", f"{s} 32/8", f"decode attention {s}", of="share", floor=0.95, target=0.98) for s in EQUAL_DECODE]
    rows += [
        kernel_row(r, "decode", "16x1024 32/8", "decode attention 16x1024", of="share", floor=0.90, target=0.95),
        kernel_row(r, "decode", "1x4096 32/8", "decode attention 1x4096", of="share", floor=0.80, target=0.90),
        kernel_row(r, "decode", "1x1024 32/8", "decode attention 1x1024", of="value", floor=7.0, target=5.5),
    ]
    for shape, floor, target in (("64x1024", 1.06, 1.12), ("16x1024", 1.18, 1.3), ("1x4096", 1.34, 1.5), ("64x4096", 1.0, 1.04)):
        rows.append(kernel_row(r, "decode", f"{shape} 32/8", f"  the same {shape}, FlashInfer", peer="FlashInfer", of="ratio", floor=floor, target=target))
    cascade = kernel_row(r, "cascade", "256x(32768+256)", "shared prefix 256x(32768+256), x one by one", of="speedup", floor=20, target=26)
    alone = r.ours("cascade", "256x(32768+256) one by one")
    cascade.value, cascade.unit = (alone["us"] / cascade.value if alone and cascade.value else None), "x"
    rows.append(cascade)
    for shape in ("4x2048", "1x8192"):
        rows.append(kernel_row(r, "prefill", f"{shape} hd128", f"prefill attention {shape}, cuDNN", peer="cuDNN", of="ratio", floor=0.90, target=1.0))
    for name in ("add + RMSNorm 8192x4096", "rope + KV write 8192x6144", "SiLU * up 8192x14336"):
        rows.append(kernel_row(r, "rows", name, name, of="share", floor=0.88, target=0.95))
    for m, floor, target in ((1, 0.95, 0.985), (8, 0.92, 0.97), (16, 0.90, 0.96)):
        rows.append(kernel_row(r, "matmul", f"step at {m} rows", f"products of an 8B step at {m} rows", of="share", floor=floor, target=target))
    for m in (64, 256, 2048):
        rows.append(kernel_row(r, "matmul", f"step at {m} rows", f"products of an 8B step at {m} rows"))
    rows.append(kernel_row(r, "sampling", "256x128256 top-k 50 + top-p 0.9", "sampling 256x128k, top-k + top-p", of="value", floor=110, target=60))
    return rows


def step_roof_ms(r: Results, w: dict) -> float | None:
    """Weights read once, and K and V of the sequences at half of their new tokens; a shared prefix counts once."""
    if not r.read_bytes_per_s() or not w["decode_steps"]:
        return None
    sequences, token_bytes = w["batch"] * w["n"], w["kv_bytes_per_token"]
    private = w.get("prompt_tokens", 0) + w.get("new_tokens", 0) / 2
    slots = w["shared_prefix_tokens"] + sequences * private
    return (w["weight_bytes"] + slots * token_bytes) / r.read_bytes_per_s() * 1e3


def prefill_roof_ms(r: Results, w: dict) -> float | None:
    """Two operations a parameter and token, at the measured rate of the largest product; at least one read of the weights."""
    if not r.operations_per_s():
        return None
    products = w["weight_bytes"] * w["batch"] * w["prompt_tokens"] / r.operations_per_s()
    return max(products, w["weight_bytes"] / r.read_bytes_per_s()) * 1e3


def engine_row(r: Results, part: str, name: str, what: str, figure: str, floor: float, target: float, recorded: str) -> Row:
    row = Row(what=what, unit="ms", of="value", floor=floor, target=target, recorded=recorded)
    w = r.workload(part, name)
    if w is None:
        return row
    row.value = w[figure]
    measured = [one[figure] for one in w.get("rounds", []) if figure in one]
    row.spread, row.rounds = spread_of(measured, row.value), len(measured)
    roof = {"ms_per_decode_step": step_roof_ms, "prefill_ms": prefill_roof_ms}.get(figure, lambda *_: None)(r, w)
    row.share = roof / row.value if roof and row.value else None
    return row


def engine_rows(r: Results) -> list[Row]:
    step, prefill, total = "ms_per_decode_step", "prefill_ms", "total_ms"
    rows = [
        engine_row(r, "engine-8b", "batch 1", "8B batch 1, step", step, 5.4, 5.08, "6.52"),
        engine_row(r, "engine-8b", "64 at 1k", "8B 64 at 1k, step", step, 9.0, 8.25, "10.1"),
        engine_row(r, "engine-8b", "256 at 1k", "8B 256 at 1k, step", step, 19.0, 17.6, "21.0"),
        engine_row(r, "engine-8b", "prefill of 8192", "8B prefill of 8192", prefill, 211, 194, "216"),
        engine_row(r, "engine-8b", "prefill of 512", "8B prefill of 512", prefill, 13.0, 10.5, "15.5"),
        engine_row(r, "engine-8b", "n = 4 on 2048", "8B n = 4 on 2048, 128 out", total, 800, 725, "1072"),
        engine_row(r, "engine-8b", "64 on a prefix of 4096", "8B 64 on a cached 4096 + 64, step", step, 7.0, 5.6, "12.0"),
        engine_row(r, "engine-0.6b", "batch 1", "0.6B batch 1, step", step, 0.90, 0.55, "1.61"),
        engine_row(r, "engine-0.6b", "64 at 1k", "0.6B 64 at 1k, step", step, 3.8, 3.2, "4.57"),
    ]
    host = engine_row(r, "engine-8b", "256 at 1k", "host time per step at 256 sequences", "host_us_per_step", 300, 80, "")
    host.unit, host.share = "us", None
    idle = [one["device_idle_us_per_step"] for one in r.parts.get("engine-0.6b", {}).get("idle", [])]
    rows += [host, Row(what="GPU idle between steps, at most", value=max(idle, default=None), unit="us", of="value", floor=40, target=10)]
    for part, what, floor, target, recorded in (("engine-8b", "8B", 14.9, 13.1, "16.4"), ("engine-0.6b", "0.6B", 6.2, 5.5, "6.95")):
        row = Row(what=f"{what} offline list of 256", unit="s", of="value", floor=floor, target=target, recorded=recorded)
        if found := r.parts.get("lists", {}).get(part):
            row.value, row.spread = found["total_ms"] / 1e3, spread_of([one["total_ms"] for one in found["rounds"]], found["total_ms"])
            row.rounds = len(found["rounds"])
        rows.append(row)
    first = r.workload("engine-8b", "batch 1")
    rows.append(Row(what="8B start to first token", value=first["start_to_first_token_ms"] / 1e3 if first else None, unit="s", of="value",
                    floor=10, target=3, recorded="68"))
    for name in ("batch 1", "16 at 1k"):
        rows.append(dataclasses.replace(engine_row(r, "engine-13b", name, f"13B {name}, step", step, 0, 0, ""), floor=None, target=None, of=""))
    return with_peer_engines(r, rows)


def with_peer_engines(r: Results, rows: list[Row]) -> list[Row]:
    """The best engine that this machine's Python could run on the same workload."""
    lines = r.parts.get("peer-engines", {}).get("lines", [])
    for row in rows:
        rivals = [p for p in lines if p["what"] == row.what]
        if rivals and row.value:
            best = min(rivals, key=lambda p: p["value"])
            row.peer, row.ratio = best["peer"], best["value"] / row.value
    return rows


def number(x: float | None, digits: int = 3) -> str:
    return "-" if x is None else f"{x:.{digits}g}" if abs(x) < 1000 else f"{x:.0f}"


def format_row(row: Row, judge: bool) -> str:
    bound = "" if row.floor is None else f"{row.of} {number(row.floor)}; {number(row.target)}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x {row.peer}"
    verdict = row.verdict() if judge else ""
    spread = "-" if row.spread is None else f"{100 * row.spread:.0f} %"
    what = f"{row.what} ({row.rounds} rounds)" if 0 < row.rounds < 5 else row.what
    return f"{what:<46}{number(row.value, 4):>9} {row.unit:<3}{spread:>7}{number(row.share):>8}  {ratio:<28}{bound:<22}{verdict:<13}{row.recorded:>8}"


def status_lines(results: dict) -> list[str]:
    lines = []
    for name, counts in results["parts"].get("tests", {}).items():
        if isinstance(counts, dict):
            lines.append(f"{name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    for tool, runs in results["parts"].get("sanitize", {}).items():
        if isinstance(runs, dict):
            lines.append(f"{tool}: " + ", ".join(f"{program} {'clean' if status == 0 else f'status {status}'}" for program, status in runs.items()))
    for part, found in results["parts"].items():
        if "failed" in found:
            lines.append(f"{part} FAILED: {found['failed']}")
        wrong = [f"{line['part']} {line['name']}" for line in found.get("ours", []) if line.get("wrong")]
        lines += [f"WRONG RESULT: {w}" for w in wrong]
        lines += [f"peer absent: {peer}: {why}" for peer, why in found.get("peers_absent", {}).items()]
    lines += [f"{part} left out: {why}" for part, why in results["left_out"].items()]
    lines.append("seconds: " + ", ".join(f"{part} {found['seconds']:.0f}" for part, found in results["parts"].items()))
    return list(dict.fromkeys(lines))


def render(results: dict) -> str:
    r = Results(results)
    card, m = r.card, results["machine"]
    head = "DRY RUN on the host shim: no figure here means anything\n" if results["dry_run"] else ""
    driver = (m["card"] or "").split(", ")[1:2] or ["-"]  # name, driver, ...
    head += f"{card.get('name', '?')}, driver {driver[0]}; commit {m['commit'] or '?'}{' with changes' if m['changed'] else ''}; {m['date']}\n"
    if "H100" not in card.get("name", ""):
        head += "floors, targets and vLLM's figures are an H100's\n"
    head += (f"ceilings: read {card.get('read_gb_per_s', 0):.0f} GB/s, copy {card.get('copy_gb_per_s', 0):.0f} GB/s, "
             f"product {r.operations_per_s() * 1e-12:.0f} TFLOP/s\n")
    title = f"{'what':<46}{'figure':>9} {'':<3}{'spread':>7}{'share':>8}  {'against the best peer':<28}{'floor; target':<22}{'reached':<13}{'vLLM0.24':>8}"
    rows = [format_row(row, judge=not results["dry_run"]) for row in kernel_rows(r) + engine_rows(r)]
    return "\n".join([head + title, *rows, *status_lines(results)])
