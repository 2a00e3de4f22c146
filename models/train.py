"""Trains the demo model: a small Llama-shaped network that reads simple English and looks things up far back in its context.

Half of each batch is plain text, half is text with facts planted in it and asked for later, so the weights use their whole
context: dropping KV-cache entries shows at once in what the model answers. README.md beside this file is the model card.

Two steps (needs torch, numpy, tokenizers, safetensors):

    python models/train.py prepare DATA_DIR TEXT_FILE...        # byte-level BPE of 4096 entries, train.bin, val.bin
    python models/train.py train DATA_DIR OUT_DIR               # about 9 minutes on one H100
    python models/train.py train DATA_DIR OUT_DIR --tiny        # two layers, a few minutes on a CPU: to see that it learns

OUT_DIR becomes a Hugging Face folder: config.json, two safetensors shards in bf16, tokenizer.json, eval.json.
"""

import argparse
import dataclasses
import json
import math
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, PAD = 0, 1


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network, named as in config.json."""

    vocab_size: int = 4096
    hidden_size: int = 320
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    intermediate_size: int = 896
    rope_theta: float = 50000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the training run: contexts of one length."""

    context_tokens: int
    batch_sequences: int
    share: float  # of the time


FULL = (Phase(1024, 96, 0.45), Phase(2048, 48, 0.35), Phase(4096, 24, 0.20))
TINY_SHAPE = Shape(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=256,
                   max_position_embeddings=256)
TINY = (Phase(128, 8, 0.5), Phase(256, 4, 0.5))

# ---- data ------------------------------------------------------------------------------------------------------------------


def prepare(data_dir: Path, texts: list[Path], vocab_size: int) -> None:
    """Trains the tokenizer and writes uint16 ids: the last 2 % of each text are for validation."""
    data_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([str(t) for t in texts], trainer)
    tokenizer.save(str(data_dir / "tokenizer.json"))
    train, validation = [], []
    for text in texts:
        ids = tokenizer.encode(text.read_text(encoding="utf-8", errors="replace")).ids
        cut = len(ids) - len(ids) // 50
        train += [END_OF_TEXT, *ids[:cut]]
        validation += [END_OF_TEXT, *ids[cut:]]
    np.array(train, np.uint16).tofile(data_dir / "train.bin")
    np.array(validation, np.uint16).tofile(data_dir / "val.bin")
    print(f"{len(train)} tokens to train on, {len(validation)} to validate on, {tokenizer.get_vocab_size()} entries")


NAMES = """Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Ned Olive Paul Rose Sam Tom Una Victor Will Amy Bess
Carl Dora Edith Fred George Helen Isaac Jane Karl Lucy Mark Nora Oscar Peter Ruth Sarah Thomas Walter Alice Beth Charles Ellen Fanny
Harry James Laura Martin Nell Philip Rachel Simon""".split()
THINGS = """book ring coat hat letter knife lamp key clock basket bottle candle box flower sword rope ball cup stone picture bell
chair glass pen shoe""".split()
PLACES = """garden kitchen tower cellar forest church barn river library castle market mill stable harbour meadow attic tunnel school
shop boat""".split()
COLOURS = "red blue green white black yellow brown grey golden silver".split()

# Weights in the loss: answers count most, planted sentences little (they cannot be foreseen).
ANSWER_WEIGHT, REPEAT_WEIGHT, PLANTED_WEIGHT = 4.0, 1.5, 0.3


@dataclasses.dataclass(frozen=True)
class Fact:
    statement: str
    question: str
    answer: str


class Corpus:
    """Draws training sequences: plain text, or text with facts planted and asked for."""

    def __init__(self, data_dir: Path, seed: int):
        self.tokenizer = Tokenizer.from_file(str(data_dir / "tokenizer.json"))
        self.ids = np.fromfile(data_dir / "train.bin", dtype=np.uint16).astype(np.int64)
        self.random = random.Random(seed)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def fact(self) -> Fact:
        draw, kind = self.random, self.random.random()
        name = draw.choice(NAMES)
        if kind < 0.45:
            digits = "".join(draw.choice("0123456789") for _ in range(5))
            return Fact(f" The pass key of {name} is {digits}.", f" What is the pass key of {name}? The pass key of {name} is", f" {digits}.")
        thing = draw.choice(THINGS)
        if kind < 0.75:
            place = draw.choice(PLACES)
            return Fact(f" {name} put the {thing} in the {place}.", f" Where did {name} put the {thing}? {name} put the {thing} in the", f" {place}.")
        colour = draw.choice(COLOURS)
        return Fact(f" The {thing} of {name} is {colour}.", f" What colour is the {thing} of {name}? The {thing} of {name} is", f" {colour}.")

    def plain(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        start = self.random.randrange(len(self.ids) - length)
        return self.ids[start : start + length], np.ones(length, np.float32)

    def events(self) -> list[tuple[float, str, Fact | None]]:
        """(place as a share of the sequence, kind, fact), in order: each fact is stated once and asked for one to three times."""
        draw = self.random
        facts = {f.question: f for f in (self.fact() for _ in range(draw.choice((1, 2, 4, 6, 8, 12, 16))))}
        events = []
        for fact in facts.values():
            stated = draw.random() * 0.9
            events.append((stated, "state", fact))
            for _ in range(draw.choice((1, 1, 2, 3))):
                gap = draw.random() if draw.random() < 0.7 else draw.random() ** 4
                events.append((stated + (1 - stated) * gap, "ask", fact))
        events += [(0.2 + 0.8 * draw.random(), "repeat", None) for _ in range(draw.choice((0, 1, 2)))]
        return sorted(events, key=lambda event: event[0])

    def planted(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        body, _ = self.plain(length)
        ids, weights, used = [], [], 0

        def put(tokens, weight):
            ids.extend(tokens)
            weights.extend([weight] * len(tokens))

        for place, kind, fact in self.events():
            until = int(place * length * 0.8)  # the planted sentences take the rest
            if until > used:
                put(body[used:until].tolist(), 1.0)
                used = until
            if kind == "state":
                put(self.encode(fact.statement), PLANTED_WEIGHT)
            elif kind == "ask":
                put(self.encode(fact.question), PLANTED_WEIGHT)
                put(self.encode(fact.answer), ANSWER_WEIGHT)
            elif len(ids) > 120:
                span = self.random.randrange(20, 60)
                start = self.random.randrange(0, len(ids) - span)
                repeated = ids[start : start + span]
                put(self.encode(" Again:"), PLANTED_WEIGHT)
                put(repeated[:8], PLANTED_WEIGHT)
                put(repeated[8:], REPEAT_WEIGHT)
            if len(ids) >= length:
                break
        put(body[used : used + max(0, length - len(ids))].tolist(), 1.0)
        put([END_OF_TEXT] * max(0, length - len(ids)), 0.0)
        return np.array(ids[:length], np.int64), np.array(weights[:length], np.float32)


class Batches(IterableDataset):
    """Endless batches ([batch, context + 1] ids, weights); every second sequence is planted."""

    def __init__(self, data_dir: Path, phase: Phase):
        self.data_dir, self.phase = data_dir, phase

    def __iter__(self):
        worker = get_worker_info().id if get_worker_info() else 0
        corpus = Corpus(self.data_dir, 1000 + worker + self.phase.context_tokens)
        length = self.phase.context_tokens + 1
        while True:
            drawn = [corpus.plain(length) if i % 2 else corpus.planted(length) for i in range(self.phase.batch_sequences)]
            yield torch.from_numpy(np.stack([ids for ids, _ in drawn])), torch.from_numpy(np.stack([w for _, w in drawn]))


# ---- network ---------------------------------------------------------------------------------------------------------------


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.head_dim, s.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        s = self.shape
        batch, length, _ = x.shape
        heads = lambda projected: projected.view(batch, length, -1, s.head_dim).transpose(1, 2)
        half = s.head_dim // 2
        rotate = lambda t: t * cos + torch.cat((-t[..., half:], t[..., :half]), -1) * sin
        v = heads(self.v_proj(x))
        q, k = rotate(heads(self.q_proj(x))).to(v.dtype), rotate(heads(self.k_proj(x))).to(v.dtype)
        group = s.num_attention_heads // s.num_key_value_heads
        out = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm = RmsNorm(s.hidden_size, s.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(s.hidden_size, s.rms_norm_eps)
        self.self_attn, self.mlp, self.drop = Attention(s), Mlp(s), nn.Dropout(0.08)

    def forward(self, x, cos, sin):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Network(nn.Module):
    """Llama's architecture with tied embeddings; parameter names match Hugging Face's after a `model.` prefix."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = RmsNorm(s.hidden_size, s.rms_norm_eps)
        into_residual = 0.02 / math.sqrt(2 * s.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0, into_residual if "o_proj" in name or "down_proj" in name else 0.02)

    def forward(self, ids):
        s = self.shape
        frequency = s.rope_theta ** (-torch.arange(0, s.head_dim, 2, device=ids.device) / s.head_dim)
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * frequency[None]
        cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


# ---- training and evaluation ---------------------------------------------------------------------------------------------


def mixed_precision(device: str):
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


@torch.no_grad()
def passkey_accuracy(network, tokenizer, text: np.ndarray, length: int, depth: float, cases: int, device: str) -> float:
    """Share of five-digit keys recalled whole from `depth` of a text of `length` tokens."""
    draw, right = random.Random(5), 0
    for _ in range(cases):
        digits, name = "".join(draw.choice("0123456789") for _ in range(5)), draw.choice(NAMES)
        encode = lambda text: tokenizer.encode(text).ids
        question = encode(f" What is the pass key of {name}? The pass key of {name} is")
        statement, answer = encode(f" The pass key of {name} is {digits}."), encode(f" {digits}")
        room = length - len(question) - len(statement) - len(answer)
        body = text[draw.randrange(max(1, len(text) - room)) :][:room].tolist()
        cut = int(len(body) * depth)
        prompt = body[:cut] + statement + body[cut:] + question
        ids = torch.tensor([prompt + answer], device=device)
        with mixed_precision(device):
            right += network(ids[:, :-1])[0, len(prompt) - 1 :].argmax(-1).tolist() == answer
    return right / cases


@torch.no_grad()
def evaluate(network, data_dir: Path, lengths: list[int], cases: int, device: str) -> dict[str, float]:
    """Validation loss (nats a token) and pass-key accuracy at each length."""
    network.eval()
    tokenizer = Tokenizer.from_file(str(data_dir / "tokenizer.json"))
    text = np.fromfile(data_dir / "val.bin", dtype=np.uint16).astype(np.int64)
    found = {}
    for length in lengths:
        rows = min(len(text) // (length + 1), 32)
        if rows:
            ids = torch.from_numpy(text[: rows * (length + 1)].reshape(rows, length + 1)).to(device)
            with mixed_precision(device):
                losses = [F.cross_entropy(network(row[None, :-1])[0].float(), row[1:]).item() for row in ids]
            found[f"val_nll_{length}"] = sum(losses) / rows
        for depth in (0.05, 0.5, 0.9):
            found[f"passkey_{length}_depth{depth}"] = passkey_accuracy(network, tokenizer, text, length, depth, cases, device)
    network.train()
    return found


def learning_rate(peak: float, step: int, progress: float) -> float:
    """150 steps of warm-up, then half a cosine down to 3 %."""
    return peak * min(1, (step + 1) / 150) * (0.5 * (1 + math.cos(math.pi * min(progress, 1))) * 0.97 + 0.03)


def make_optimizer(network: nn.Module, rate: float, device: str):
    decayed = [p for p in network.parameters() if p.dim() == 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=device == "cuda")


def train(network: Network, data_dir: Path, phases: tuple[Phase, ...], seconds: float, rate: float, workers: int, device: str) -> dict[str, int]:
    """Trains for `seconds` of wall time, shared out over the phases. Returns steps and tokens seen."""
    forward = torch.compile(network, dynamic=False) if device == "cuda" else network
    optimizer = make_optimizer(network, rate, device)
    steps = tokens = 0
    done = 0.0  # share of the run before this phase
    for phase in phases:
        loader = iter(DataLoader(Batches(data_dir, phase), batch_size=None, num_workers=workers))
        started = None
        while True:
            elapsed = 0.0 if started is None else time.monotonic() - started
            if elapsed >= seconds * phase.share:
                break
            ids, weights = (t.to(device, non_blocking=True) for t in next(loader))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(rate, steps, done + elapsed / seconds)
            with mixed_precision(device):
                logits = forward(ids[:, :-1])
            losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            weight = weights[:, 1:].flatten()
            loss = (losses * weight).sum() / weight.sum()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps, tokens = steps + 1, tokens + ids[:, 1:].numel()
            if started is None:  # the first step compiles
                started = time.monotonic()
            if steps % 100 == 0:
                answers = losses[weight == ANSWER_WEIGHT].mean().item()
                print(f"step {steps} context {phase.context_tokens} tokens {tokens / 1e6:.1f}M loss {loss.item():.3f} answers {answers:.3f}", flush=True)
        done += phase.share
    return {"steps": steps, "tokens": tokens}


# ---- export ----------------------------------------------------------------------------------------------------------------


def export(network: Network, data_dir: Path, out_dir: Path, evaluation: dict) -> None:
    """Writes a Hugging Face folder: bf16 weights in two shards with an index."""
    shape = network.shape
    tensors = {f"model.{name}": t.to(torch.bfloat16).contiguous().cpu() for name, t in network.state_dict().items()}
    upper = [n for n in tensors if ".layers." in n and int(n.split(".")[2]) >= shape.num_hidden_layers // 2]
    lower = [n for n in tensors if n not in upper]
    weight_map = {}
    for number, names in enumerate((lower, upper), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names}, str(out_dir / file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(t.numel() * 2 for t in tensors.values())
    ids = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": PAD}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **dataclasses.asdict(shape), "tie_word_embeddings": True,
              "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16", **ids}
    files = {"config.json": config, "generation_config.json": ids, "eval.json": evaluation,
             "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": weight_map},
             "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL_TOKENS[0],
                                       "eos_token": SPECIAL_TOKENS[0], "pad_token": SPECIAL_TOKENS[1],
                                       "add_bos_token": False, "clean_up_tokenization_spaces": False,
                                       "model_max_length": shape.max_position_embeddings}}
    for name, content in files.items():
        (out_dir / name).write_text(json.dumps(content, indent=1))
    shutil.copyfile(data_dir / "tokenizer.json", out_dir / "tokenizer.json")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="tokenizer and token ids from text files")
    preparing.add_argument("data_dir", type=Path)
    preparing.add_argument("texts", type=Path, nargs="+")
    preparing.add_argument("--vocab-size", type=int, default=4096)
    training = commands.add_parser("train", help="train and export")
    training.add_argument("data_dir", type=Path)
    training.add_argument("out_dir", type=Path)
    training.add_argument("--tiny", action="store_true", help="two layers and short contexts, for a CPU")
    training.add_argument("--seconds", type=float, help="training time (default 430, with --tiny 120)")
    training.add_argument("--learning-rate", type=float, default=2.5e-3)
    training.add_argument("--workers", type=int, help="data processes (default 13, with --tiny 0)")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    if args.command == "prepare":
        prepare(args.data_dir, args.texts, args.vocab_size)
        return 0
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    vocab_size = Tokenizer.from_file(str(args.data_dir / "tokenizer.json")).get_vocab_size()
    shape, phases = (TINY_SHAPE, TINY) if args.tiny else (Shape(), FULL)
    network = Network(dataclasses.replace(shape, vocab_size=vocab_size)).to(args.device)
    print(f"{sum(p.numel() for p in network.parameters())} parameters on {args.device}", flush=True)
    seconds = args.seconds if args.seconds is not None else (120 if args.tiny else 430)
    workers = args.workers if args.workers is not None else (0 if args.tiny else 13)
    counts = train(network, args.data_dir, phases, seconds, args.learning_rate, workers, args.device)
    lengths = [p.context_tokens for p in phases] if args.tiny else [512, 1024, 2048, 4096]
    evaluation = evaluate(network, args.data_dir, lengths, 5 if args.tiny else 40, args.device) | counts
    print(json.dumps(evaluation, indent=1))
    export(network, args.data_dir, args.out_dir, evaluation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
