"""Stands in for torch, so that the peers' scripts run where there is none: tensors are shapes, time does not pass, and what the scripts ask
for by a name or a shape that does not fit is a fault. It knows what they use and nothing else; whether torch itself has it, it cannot know."""

import contextlib
import sys
import types

bfloat16, int32, uint8, long = "bfloat16", "int32", "uint8", "long"


class Tensor:
    def __init__(self, *shape):
        self.shape = tuple(shape)

    def same(self, *_, **__):
        return self

    add_ = masked_fill = cumsum = gather = __mul__ = __sub__ = __rmul__ = __ge__ = same

    def __matmul__(self, other):
        assert self.shape[-1] == other.shape[0], f"{self.shape} @ {other.shape}"
        return Tensor(*self.shape[:-1], other.shape[1])

    def chunk(self, parts, dim):
        assert dim == -1 and self.shape[-1] % parts == 0, f"{self.shape} in {parts}"
        return [Tensor(*self.shape[:-1], self.shape[-1] // parts) for _ in range(parts)]

    def sort(self, dim, descending):
        return self, self

    def argmax(self, dim):
        return Tensor(*self.shape[:-1])


def randn(*shape, dtype=None, device=None):
    return Tensor(*shape)


def empty(*shape, dtype=None, device=None):
    return Tensor(*shape)


def full(shape, value, dtype=None, device=None):
    return Tensor(*shape)


def arange(count, dtype=None, device=None):
    return Tensor(count)


def randperm(count, dtype=None, device=None):
    return Tensor(count)


def tensor(rows, device=None):
    return Tensor(len(rows), len(rows[0]))


def ones_like(of):
    return of


def topk(of, count):
    return Tensor(*of.shape[:-1], count), Tensor(*of.shape[:-1], count)


def softmax(of, dim):
    return of


def multinomial(of, count):
    return Tensor(of.shape[0], count)


def compile(function):
    return function


def device(name):
    return contextlib.nullcontext()


def inference_mode():
    return contextlib.nullcontext()


def linear(x, weight):
    assert x.shape[-1] == weight.shape[1], f"{x.shape} by {weight.shape}"
    return Tensor(*x.shape[:-1], weight.shape[0])


def rms_norm(x, shape, weight, eps):
    assert x.shape[-1:] == tuple(shape) == weight.shape, f"{x.shape}, {shape}, {weight.shape}"
    return x


def silu(x):
    return x


def attention(q, k, v, is_causal=False, enable_gqa=False, block_mask=None):
    assert k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[-1] == k.shape[-1], f"{q.shape}, {k.shape}, {v.shape}"
    assert enable_gqa and q.shape[1] % k.shape[1] == 0, f"{q.shape[1]} query heads of {k.shape[1]}"
    return q


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, end):
        return 1.0


class CUDAGraph:
    def replay(self):
        pass


def module(name, **members):
    sys.modules[f"torch.{name}"] = made = types.ModuleType(f"torch.{name}")
    made.__dict__.update(members)
    return made


cuda = module("cuda", is_available=lambda: True, synchronize=lambda: None, empty_cache=lambda: None, Event=Event, CUDAGraph=CUDAGraph, Stream=object,
              stream=lambda of: contextlib.nullcontext(), graph=lambda of, stream: contextlib.nullcontext())
nn = module("nn")
nn.functional = module("nn.functional", linear=linear, rms_norm=rms_norm, silu=silu, scaled_dot_product_attention=attention)
backends = types.SimpleNamespace(CUDNN_ATTENTION="cudnn", FLASH_ATTENTION="flash")
nn.attention = module("nn.attention", SDPBackend=backends, sdpa_kernel=lambda backend: contextlib.nullcontext())
module("nn.attention.flex_attention", flex_attention=attention, create_block_mask=lambda sees, b, h, rows, slots, device: (rows, slots))
