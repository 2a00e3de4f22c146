#!/usr/bin/env python3
"""The peers' kernels on the shapes that ours are timed on: what torch, FlexAttention, cuBLAS, cuDNN and FlashInfer reach here.

Each is captured in a CUDA graph over several sets of inputs that together pass the L2, replayed, and timed by events, as ours are.
A peer that is missing or refuses a shape is named with its reason and the others go on. Written for torch 2.11 and FlashInfer 0.6.
A dry run takes small shapes, on the CPU where there is no card: what only CUDA has then says so.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

WARM_UP = 3
ROTATED_BYTES = 512 << 20

try:
    import torch
except ImportError as fault:  # the driver's table says so; nothing else here can run
    torch = None
    NO_TORCH = str(fault)


@dataclasses.dataclass
class Sizes:
    """What is timed: the shapes of Llama-3.1-8B, or small ones for a dry run."""

    device: str = "cuda"
    layer: tuple = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    head: tuple = (128256, 4096)
    product_rows: tuple = (1, 2, 4, 8, 16, 64, 256, 2048)
    square: int = 8192
    op_rows: tuple = (64, 8192)
    hidden: int = 4096
    intermediate: int = 14336
    samples: tuple = (256, 128256)
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    decode: tuple = ((1, 1024), (1, 4096), (1, 32768), (16, 1024), (16, 4096), (64, 1024), (64, 4096), (256, 1024))
    prefill: tuple = ((1, 512), (16, 512), (8, 1024), (4, 2048), (1, 2048), (1, 8192), (1, 32768))
    flex: tuple = ((1, 4096), (64, 1024), (4, 2048), (1, 8192))  # it compiles anew for each

    def bf16(self, *shape):
        return torch.randn(*shape, dtype=torch.bfloat16, device=self.device)


def tiny_sizes(device: str) -> Sizes:
    return Sizes(device, ((96, 64), (64, 64), (192, 64), (64, 96)), (200, 64), (1, 8), 64, (3,), 64, 96, (3, 1000), 4, 2, 64,
                 ((2, 48),), ((1, 128),), ((2, 48), (1, 128)))


class Peers:
    """Lines in the form of our benchmarks, and why what is absent is absent."""

    def __init__(self, rounds: int, sizes: Sizes):
        self.rounds, self.sizes, self.lines, self.absent = rounds, sizes, [], {}

    def time(self, peer: str, part: str, name: str, repeats: int, call) -> None:
        try:
            rounds_us = self.rounds_of(repeats, call)
        except Exception as fault:  # a peer's refusal is a result, whatever its type
            self.absent.setdefault(f"{peer}, {part} {name}", f"{type(fault).__name__}: {str(fault).splitlines()[0][:160] if str(fault) else ''}")
            if self.sizes.device == "cuda":
                torch.cuda.synchronize()
            return
        median = sorted(rounds_us)[len(rounds_us) // 2]
        self.lines.append({"part": part, "name": name, "peer": peer, "us": median, "rounds_us": rounds_us})
        print(f"{part:<10}{name:<34}{peer:<28}{median:10.2f} us", flush=True)

    def rounds_of(self, repeats: int, call) -> list[float]:
        return self.graph_rounds(repeats, call) if self.sizes.device == "cuda" else self.host_rounds(repeats, call)

    def host_rounds(self, repeats: int, call) -> list[float]:
        """A dry run where torch sees no card."""
        found = []
        for _ in range(self.rounds):
            begin = time.perf_counter()
            for i in range(repeats):
                call(i)
            found.append((time.perf_counter() - begin) * 1e6 / repeats)
        return found

    def graph_rounds(self, repeats: int, call) -> list[float]:
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


def sets_for(num_bytes: int) -> int:
    return max(3, min(32, ROTATED_BYTES // max(num_bytes, 1) + 1))


# ---- products, norms, SiLU, sampling -------------------------------------------------------------------------------------------
MODEL_LAYERS, COPIES = 32, 4


def products(peers: Peers, z: Sizes) -> None:
    layers = [[z.bf16(*shape) for shape in z.layer] for _ in range(COPIES)]
    head = z.bf16(*z.head)
    for rows in z.product_rows:
        inputs = {k: z.bf16(rows, k) for k in {shape[1] for shape in (*z.layer, z.head)}}

        def layer(i):
            for w in layers[i % COPIES]:
                torch.nn.functional.linear(inputs[w.shape[1]], w)

        parts = Peers(peers.rounds, z)
        parts.time("cuBLAS", "matmul", f"a layer at {rows} rows", 2 * COPIES, layer)
        parts.time("cuBLAS", "matmul", f"the head at {rows} rows", 2, lambda i: torch.nn.functional.linear(inputs[z.head[1]], head))
        peers.absent.update(parts.absent)
        if len(parts.lines) == 2:
            step = [MODEL_LAYERS * a + b for a, b in zip(parts.lines[0]["rounds_us"], parts.lines[1]["rounds_us"])]
            peers.lines.append({"part": "matmul", "name": f"step at {rows} rows", "peer": "cuBLAS", "us": sorted(step)[len(step) // 2], "rounds_us": step})


def row_ops(peers: Peers, z: Sizes) -> None:
    weight = z.bf16(z.hidden)

    def norm(residual, delta):
        residual.add_(delta)
        return torch.nn.functional.rms_norm(residual, (z.hidden,), weight, 1e-5)

    def silu(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    compiled_norm, compiled_silu = torch.compile(norm), torch.compile(silu)
    for rows in z.op_rows:
        sets = sets_for(4 * rows * z.hidden * 2)
        pairs = [(z.bf16(rows, z.hidden), z.bf16(rows, z.hidden)) for _ in range(sets)]
        name = f"add + RMSNorm {rows}x{z.hidden}"
        peers.time("torch", "rows", name, sets, lambda i: norm(*pairs[i]))
        peers.time("torch.compile", "rows", name, sets, lambda i: compiled_norm(*pairs[i]))
        sets = sets_for(3 * rows * z.intermediate * 2)
        gates = [z.bf16(rows, 2 * z.intermediate) for _ in range(sets)]
        name = f"SiLU * up {rows}x{z.intermediate}"
        peers.time("torch", "rows", name, sets, lambda i: silu(gates[i]))
        peers.time("torch.compile", "rows", name, sets, lambda i: compiled_silu(gates[i]))


def sampling(peers: Peers, z: Sizes) -> None:
    (rows, vocab), top_k, top_p = z.samples, 50, 0.9
    logits = [torch.randn(rows, vocab, device=z.device) * 2.5 for _ in range(2)]

    def by_top_k(i):
        values, ids = torch.topk(logits[i], top_k)
        p = torch.softmax(values, -1)
        return ids.gather(-1, torch.multinomial(p.masked_fill((p.cumsum(-1) - p) >= top_p, 0), 1))

    def by_sort(i):
        p, ids = torch.softmax(logits[i], -1).sort(-1, descending=True)
        return ids.gather(-1, torch.multinomial(p.masked_fill((p.cumsum(-1) - p) >= top_p, 0), 1))

    peers.time("torch topk", "sampling", f"{rows}x{vocab} top-k 50 + top-p 0.9", 2, by_top_k)
    peers.time("torch sort", "sampling", f"{rows}x{vocab} top-p 0.9", 2, by_sort)
    peers.time("torch", "sampling", f"{rows}x{vocab} greedy", 2, lambda i: logits[i].argmax(-1))
    flashinfer = imported(peers, "flashinfer")
    if flashinfer is not None:
        peers.time("FlashInfer", "sampling", f"{rows}x{vocab} top-k 50 + top-p 0.9", 2,
                   lambda i: flashinfer.sampling.top_k_top_p_sampling_from_logits(logits[i], top_k, top_p))


def ceiling(peers: Peers, z: Sizes) -> None:
    a, b = z.bf16(z.square, z.square), z.bf16(z.square, z.square)
    peers.time("cuBLAS", "ceiling", f"product of {z.square} x {z.square} x {z.square}", 2, lambda i: a @ b)


# ---- attention -----------------------------------------------------------------------------------------------------------------
BLOCK = 16


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


def decode(peers: Peers, z: Sizes) -> None:
    from torch.nn.attention import SDPBackend
    from torch.nn.attention.flex_attention import flex_attention

    flex = torch.compile(flex_attention)
    for sequences, length in z.decode:
        name = f"{sequences}x{length} {z.q_heads}/{z.kv_heads}"
        layers = max(2, min(32, (4 << 30) // (sequences * length * z.kv_heads * z.head_dim * 4)))
        q = z.bf16(sequences, z.q_heads, 1, z.head_dim)
        shape = (sequences, z.kv_heads, length, z.head_dim)
        kv = [(z.bf16(*shape), z.bf16(*shape)) for _ in range(layers)]
        peers.time("cuDNN contiguous", "decode", name, layers, lambda i: sdpa(SDPBackend.CUDNN_ATTENTION, q, *kv[i], False))
        peers.time("torch FLASH contiguous", "decode", name, layers, lambda i: sdpa(SDPBackend.FLASH_ATTENTION, q, *kv[i], False))
        if (sequences, length) in z.flex:
            peers.time("FlexAttention contiguous", "decode", name, layers, lambda i: flex(q, *kv[i], enable_gqa=True))
        del kv
        flashinfer_decode(peers, z, sequences, length, layers, name)


def flashinfer_decode(peers: Peers, z: Sizes, sequences: int, length: int, layers: int, name: str) -> None:
    flashinfer = imported(peers, "flashinfer")
    if flashinfer is None:
        return
    pages = sequences * math.ceil(length / BLOCK)
    pools = [z.bf16(pages, 2, z.kv_heads, BLOCK, z.head_dim) for _ in range(layers)]
    indices = torch.randperm(pages, dtype=torch.int32, device=z.device)
    starts = torch.arange(sequences + 1, dtype=torch.int32, device=z.device) * (pages // sequences)
    last = torch.full((sequences,), (length - 1) % BLOCK + 1, dtype=torch.int32, device=z.device)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=z.device)
    q = z.bf16(sequences, z.q_heads, z.head_dim)
    try:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        wrapper.plan(starts, indices, last, z.q_heads, z.kv_heads, z.head_dim, BLOCK, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    except Exception as fault:
        peers.absent["FlashInfer decode"] = f"{type(fault).__name__}: {str(fault)[:160]}"
        return
    peers.time("FlashInfer paged", "decode", name, layers, lambda i: wrapper.run(q, pools[i]))


def prefill(peers: Peers, z: Sizes) -> None:
    from torch.nn.attention import SDPBackend
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex = torch.compile(flex_attention)
    for sequences, length in z.prefill:
        name, sets = f"{sequences}x{length} hd{z.head_dim}", 3
        kv_shape = (sequences, z.kv_heads, length, z.head_dim)
        inputs = [(z.bf16(sequences, z.q_heads, length, z.head_dim), z.bf16(*kv_shape), z.bf16(*kv_shape)) for _ in range(sets)]
        peers.time("cuDNN contiguous", "prefill", name, sets, lambda i: sdpa(SDPBackend.CUDNN_ATTENTION, *inputs[i], True))
        peers.time("torch FLASH contiguous", "prefill", name, sets, lambda i: sdpa(SDPBackend.FLASH_ATTENTION, *inputs[i], True))
        if (sequences, length) in z.flex:
            mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, length, length, device=z.device)
            peers.time("FlexAttention contiguous", "prefill", name, sets, lambda i: flex(*inputs[i], block_mask=mask, enable_gqa=True))


KINDS = {"step": (ceiling, products, row_ops, sampling), "attention": (decode, prefill)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU where torch sees no card")
    args = parser.parse_args()
    has_card = torch is not None and torch.cuda.is_available()
    peers = Peers(args.rounds, tiny_sizes("cuda" if has_card else "cpu") if args.tiny else Sizes())
    if torch is None:
        peers.absent["torch"] = NO_TORCH
    elif not has_card and not args.tiny:
        peers.absent["all peers"] = "torch sees no card"
    else:
        for measure in KINDS[args.kind]:
            try:
                measure(peers, peers.sizes)
            except Exception as fault:  # a peer's set-up that fails takes only its own group with it
                peers.absent[measure.__name__] = f"{type(fault).__name__}: {str(fault)[:160]}"
            if has_card:
                torch.cuda.empty_cache()
    args.json.write_text(json.dumps({"lines": peers.lines, "absent": peers.absent}, indent=1))
    for peer, why in peers.absent.items():
        print(f"absent: {peer}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
