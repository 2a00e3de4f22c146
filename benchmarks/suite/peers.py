#!/usr/bin/env python3
"""The peers' kernels on the shapes that ours are timed on: what torch, FlexAttention, cuBLAS, cuDNN and FlashInfer reach here.

Each is captured in a CUDA graph over several sets of inputs that together pass the L2, replayed, and timed by events, as ours are.
A peer that is missing or refuses a shape is named with its reason and the others go on. Written for torch 2.11 and FlashInfer 0.6.
"""

import argparse
import json
import math
import sys
from pathlib import Path

WARM_UP = 3
ROTATED_BYTES = 512 << 20

try:
    import torch
except ImportError as fault:  # the driver's table says so; nothing else here can run
    torch = None
    NO_TORCH = str(fault)


class Peers:
    """Lines in the form of our benchmarks, and why what is absent is absent."""

    def __init__(self, rounds: int):
        self.rounds, self.lines, self.absent = rounds, [], {}

    def time(self, peer: str, part: str, name: str, repeats: int, call) -> None:
        try:
            rounds_us = self.rounds_of(repeats, call)
        except Exception as fault:  # a peer's refusal is a result, whatever its type
            self.absent.setdefault(f"{peer}, {part} {name}", f"{type(fault).__name__}: {str(fault).splitlines()[0][:160] if str(fault) else ''}")
            torch.cuda.synchronize()
            return
        median = sorted(rounds_us)[len(rounds_us) // 2]
        self.lines.append({"part": part, "name": name, "peer": peer, "us": median, "rounds_us": rounds_us})
        print(f"{part:<10}{name:<34}{peer:<28}{median:10.2f} us", flush=True)

    def rounds_of(self, repeats: int, call) -> list[float]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(repeats):
                call(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(repeats):
                call(i)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        found = []
        for i in range(WARM_UP + self.rounds):
            with torch.cuda.stream(stream):
                begin.record()
                graph.replay()
                end.record()
            end.synchronize()
            if i >= WARM_UP:
                found.append(begin.elapsed_time(end) * 1e3 / repeats)
        return found


def bf16(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def sets_for(num_bytes: int) -> int:
    return max(3, min(32, ROTATED_BYTES // max(num_bytes, 1) + 1))


# ---- products, norms, SiLU, sampling -------------------------------------------------------------------------------------------
LAYER = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
HEAD = (128256, 4096)
MODEL_LAYERS, COPIES = 32, 4


def products(peers: Peers) -> None:
    layers = [[bf16(*shape) for shape in LAYER] for _ in range(COPIES)]
    head = bf16(*HEAD)
    for rows in (1, 2, 4, 8, 16, 64, 256, 2048):
        inputs = {k: bf16(rows, k) for k in (4096, 14336)}
        before = len(peers.lines)

        def layer(i):
            for w in layers[i % COPIES]:
                torch.nn.functional.linear(inputs[w.shape[1]], w)

        peers.time("cuBLAS", "matmul", "layer", 2 * COPIES, layer)
        peers.time("cuBLAS", "matmul", "head", 2, lambda i: torch.nn.functional.linear(inputs[4096], head))
        parts = peers.lines[before:]
        del peers.lines[before:]
        if len(parts) == 2:
            step = [MODEL_LAYERS * a + b for a, b in zip(parts[0]["rounds_us"], parts[1]["rounds_us"])]
            peers.lines.append({"part": "matmul", "name": f"step at {rows} rows", "peer": "cuBLAS", "us": sorted(step)[len(step) // 2], "rounds_us": step})


def row_ops(peers: Peers) -> None:
    weight = bf16(4096)

    def norm(residual, delta):
        residual.add_(delta)
        return torch.nn.functional.rms_norm(residual, (4096,), weight, 1e-5)

    def silu(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    compiled_norm, compiled_silu = torch.compile(norm), torch.compile(silu)
    for rows in (64, 8192):
        sets = sets_for(4 * rows * 4096 * 2)
        pairs = [(bf16(rows, 4096), bf16(rows, 4096)) for _ in range(sets)]
        name = f"add + RMSNorm {rows}x4096"
        peers.time("torch", "rows", name, sets, lambda i: norm(*pairs[i]))
        peers.time("torch.compile", "rows", name, sets, lambda i: compiled_norm(*pairs[i]))
        sets = sets_for(3 * rows * 14336 * 2)
        gates = [bf16(rows, 2 * 14336) for _ in range(sets)]
        name = f"SiLU * up {rows}x14336"
        peers.time("torch", "rows", name, sets, lambda i: silu(gates[i]))
        peers.time("torch.compile", "rows", name, sets, lambda i: compiled_silu(gates[i]))


def sampling(peers: Peers) -> None:
    rows, vocab, top_k, top_p = 256, 128256, 50, 0.9
    logits = [torch.randn(rows, vocab, device="cuda") * 2.5 for _ in range(2)]

    def by_sort(i):
        values, ids = torch.topk(logits[i], top_k)
        p = torch.softmax(values, -1)
        p[(p.cumsum(-1) - p) >= top_p] = 0
        return ids.gather(-1, torch.multinomial(p, 1))

    def by_full_sort(i):
        p, ids = torch.softmax(logits[i], -1).sort(-1, descending=True)
        return ids.gather(-1, torch.multinomial(p.masked_fill((p.cumsum(-1) - p) >= top_p, 0), 1))

    peers.time("torch topk", "sampling", f"{rows}x{vocab} top-k 50 + top-p 0.9", 2, by_sort)
    peers.time("torch sort", "sampling", f"{rows}x{vocab} top-p 0.9", 2, by_full_sort)
    peers.time("torch", "sampling", f"{rows}x{vocab} greedy", 2, lambda i: logits[i].argmax(-1))
    flashinfer = imported(peers, "flashinfer")
    if flashinfer is not None:
        peers.time("FlashInfer", "sampling", f"{rows}x{vocab} top-k 50 + top-p 0.9", 2,
                   lambda i: flashinfer.sampling.top_k_top_p_sampling_from_logits(logits[i], top_k, top_p))


def ceiling(peers: Peers) -> None:
    a, b = bf16(8192, 8192), bf16(8192, 8192)
    peers.time("cuBLAS", "ceiling", "product of 8192 x 8192 x 8192", 2, lambda i: a @ b)


# ---- attention -----------------------------------------------------------------------------------------------------------------
Q_HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 16
DECODE = ((1, 1024), (1, 4096), (1, 32768), (16, 1024), (16, 4096), (64, 1024), (64, 4096), (256, 1024))
PREFILL = ((1, 512), (16, 512), (8, 1024), (4, 2048), (1, 2048), (1, 8192), (1, 32768))


def imported(peers: Peers, name: str):
    try:
        return __import__(name)
    except Exception as fault:
        peers.absent[name] = f"{type(fault).__name__}: {str(fault)[:160]}"
        return None


def sdpa(backend, q, k, v, causal):
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def decode(peers: Peers) -> None:
    from torch.nn.attention import SDPBackend
    from torch.nn.attention.flex_attention import flex_attention

    flex = torch.compile(flex_attention)
    for sequences, length in DECODE:
        name = f"{sequences}x{length} {Q_HEADS}/{KV_HEADS}"
        layers = max(2, min(32, (4 << 30) // (sequences * length * KV_HEADS * DIM * 4)))
        q = bf16(sequences, Q_HEADS, 1, DIM)
        kv = [(bf16(sequences, KV_HEADS, length, DIM), bf16(sequences, KV_HEADS, length, DIM)) for _ in range(layers)]
        peers.time("cuDNN contiguous", "decode", name, layers, lambda i: sdpa(SDPBackend.CUDNN_ATTENTION, q, *kv[i], False))
        peers.time("torch FLASH contiguous", "decode", name, layers, lambda i: sdpa(SDPBackend.FLASH_ATTENTION, q, *kv[i], False))
        if (sequences, length) in ((1, 4096), (64, 1024)):  # it compiles for each shape
            peers.time("FlexAttention contiguous", "decode", name, layers, lambda i: flex(q, *kv[i], enable_gqa=True))
        del kv
        flashinfer_decode(peers, sequences, length, layers, name)


def flashinfer_decode(peers: Peers, sequences: int, length: int, layers: int, name: str) -> None:
    flashinfer = imported(peers, "flashinfer")
    if flashinfer is None:
        return
    pages = sequences * math.ceil(length / BLOCK)
    pools = [bf16(pages, 2, KV_HEADS, BLOCK, DIM) for _ in range(layers)]
    indices = torch.randperm(pages, dtype=torch.int32, device="cuda")
    starts = torch.arange(sequences + 1, dtype=torch.int32, device="cuda") * (pages // sequences)
    last = torch.full((sequences,), (length - 1) % BLOCK + 1, dtype=torch.int32, device="cuda")
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    q = bf16(sequences, Q_HEADS, DIM)
    try:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        wrapper.plan(starts, indices, last, Q_HEADS, KV_HEADS, DIM, BLOCK, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    except Exception as fault:
        peers.absent["FlashInfer decode"] = f"{type(fault).__name__}: {str(fault)[:160]}"
        return
    peers.time("FlashInfer paged", "decode", name, layers, lambda i: wrapper.run(q, pools[i]))


def prefill(peers: Peers) -> None:
    from torch.nn.attention import SDPBackend
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex = torch.compile(flex_attention)
    for sequences, length in PREFILL:
        name = f"{sequences}x{length} hd{DIM}"
        sets = 3
        inputs = [(bf16(sequences, Q_HEADS, length, DIM), bf16(sequences, KV_HEADS, length, DIM), bf16(sequences, KV_HEADS, length, DIM)) for _ in range(sets)]
        peers.time("cuDNN contiguous", "prefill", name, sets, lambda i: sdpa(SDPBackend.CUDNN_ATTENTION, *inputs[i], True))
        peers.time("torch FLASH contiguous", "prefill", name, sets, lambda i: sdpa(SDPBackend.FLASH_ATTENTION, *inputs[i], True))
        if (sequences, length) in ((4, 2048), (1, 8192)):
            mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, length, length, device="cuda")
            peers.time("FlexAttention contiguous", "prefill", name, sets, lambda i: flex(*inputs[i], block_mask=mask, enable_gqa=True))


KINDS = {"step": (ceiling, products, row_ops, sampling), "attention": (decode, prefill)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="for a dry run: only says what is absent")
    args = parser.parse_args()
    peers = Peers(args.rounds)
    if torch is None:
        peers.absent["torch"] = NO_TORCH
    elif args.tiny or not torch.cuda.is_available():
        peers.absent["all peers"] = "a dry run" if args.tiny else "torch sees no card"
    else:
        for measure in KINDS[args.kind]:
            try:
                measure(peers)
            except Exception as fault:  # a peer's set-up that fails takes only its own group with it
                peers.absent[measure.__name__] = f"{type(fault).__name__}: {str(fault)[:160]}"
            torch.cuda.empty_cache()
    args.json.write_text(json.dumps({"lines": peers.lines, "absent": peers.absent}, indent=1))
    for peer, why in peers.absent.items():
        print(f"absent: {peer}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
