"""KV policies in plain float64: a Llama forward pass without a paged cache, which decides what stays by the papers' rules alone.

Independent of the engine: keys are kept before rotation, and StreamingLLM's positions are assigned anew at every step and key
(Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, 3.2) where the engine rotates the query twice. Slow; for prompts of a few hundred tokens.
Layout: [position, head, head_dim] arrays; `kept` lists hold positions, ascending.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from llama_float64 import LlamaFloat64  # noqa: E402  (the path is set above)


@dataclass
class Policy:
    """kind: "none", "window", "stream", "tova", "h2o"; the other fields as the kind needs them, in tokens."""

    kind: str = "none"
    size: int = 0
    sinks: int = 0
    recent: int = 0
    budget: int = 0
    heavy: int = 0

    def __str__(self) -> str:
        keys = {"window": ["size"], "stream": ["sinks", "recent"], "tova": ["budget"], "h2o": ["heavy", "recent"]}.get(self.kind, [])
        return self.kind + (":" + ",".join(f"{k}={getattr(self, k)}" for k in keys) if keys else "")


@dataclass
class Run:
    """What a greedy run gave. closest: the smallest gap of any decision, in logits for tokens and in scores for victims.

    closest_share: the same for victims, as a share of the higher score. logprobs: [token][vocabulary]."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    kept: list[list[list[int]]] = field(default_factory=list)  # [layer][list][positions]
    closest_token: float = np.inf
    closest_victim: float = np.inf
    closest_share: float = np.inf


class ReferenceModel(LlamaFloat64):
    """A checkpoint under a policy, one sequence at a time."""

    # ---- attention of one row over chosen positions of each kv head
    def attend(self, q: np.ndarray, q_position: int, k: np.ndarray, v: np.ndarray, kept: list[np.ndarray], key_positions: list[np.ndarray]):
        """q: [q_heads, dim] before rotation; k, v: [positions, kv_heads, dim]; kept[h], key_positions[h]: what kv head h sees and where it
        stands. Returns (values [q_heads, dim], probabilities [q_heads][len(kept)])."""
        rotated = self.rotate(q, np.full((), q_position))
        values, probabilities = np.zeros((self.q_heads, self.dim)), []
        for kv in range(self.kv_heads):
            heads = slice(kv * self.group, (kv + 1) * self.group)
            keys = self.rotate(k[kept[kv], kv][:, None, :], key_positions[kv])[:, 0]
            scores = rotated[heads] @ keys.T / np.sqrt(self.dim)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            values[heads] = p @ v[kept[kv], kv]
            probabilities.extend(p)
        return values, probabilities

    def visible(self, policy: Policy, t: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Under a position-only policy: what row t sees, its own position, and the positions of what it sees."""
        if policy.kind == "window":
            seen = np.arange(max(0, t - policy.size + 1), t + 1)
        elif policy.kind == "stream":
            window = np.arange(max(0, t - policy.recent + 1), t + 1)
            seen = np.union1d(np.arange(min(policy.sinks, t + 1)), window)
            return seen, len(seen) - 1, np.arange(len(seen))  # positions inside the cache
        else:
            seen = np.arange(t + 1)
        return seen, t, seen

    def greedy(self, prompt: list[int], policy: Policy, count: int) -> Run:
        state = _Sequence(self, policy)
        run = Run()
        row = state.prefill(prompt)
        for step in range(count):
            logits = self.logits(row)
            best = int(np.argmax(logits))
            second = np.partition(logits, -2)[-2]
            run.closest_token = min(run.closest_token, float(logits[best] - second))
            run.tokens.append(best)
            run.logprobs.append(logits - logits[best] - np.log(np.exp(logits - logits[best]).sum()))
            if step + 1 < count:
                row = state.decode(best)
        run.kept = state.kept_positions()
        run.closest_victim, run.closest_share = state.closest_victim, state.closest_share
        return run

    def beams(self, prompt: list[int], policy: Policy, width: int, count: int) -> Run:
        """The `width` likeliest continuations of a beam search that nothing ends before `count` tokens, best first: one after another in tokens and kept."""
        state, run = _Sequence(self, policy), Run()
        running = [(0.0, [], state, state.prefill(prompt))]
        for step in range(count):
            found = []
            for parent, (total, _, _, row) in enumerate(running):
                logits = self.logits(row)
                logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
                found += [(total + logprobs[token], parent, int(token)) for token in np.argsort(-logprobs)[: width + 1]]
            found.sort(key=lambda f: -f[0])
            run.closest_token = min([run.closest_token, *(a[0] - b[0] for a, b in zip(found[:width], found[1 : width + 1]))])
            following = []
            for total, parent, token in found[:width]:
                _, tokens, state, row = running[parent]
                if step + 1 < count:
                    state = state.fork()
                    row = state.decode(token)
                following.append((total, [*tokens, token], state, row))
            running = following
            run.closest_share = min([run.closest_share, *(b[2].closest_share for b in running)])
        run.tokens = [token for _, tokens, _, _ in running for token in tokens]
        run.kept = [layer for _, _, state, _ in running for layer in state.kept_positions()]
        return run

    def negative_log_likelihoods(self, tokens: list[int], prompt_tokens: int, policy: Policy) -> list[float]:
        """Of tokens[prompt_tokens:], each decoded after those before it."""
        state = _Sequence(self, policy)
        row, losses = state.prefill(tokens[:prompt_tokens]), []
        for token in tokens[prompt_tokens:]:
            logits = self.logits(row)
            most = logits.max()
            losses.append(float(most + np.log(np.exp(logits - most).sum()) - logits[token]))
            row = state.decode(token)
        return losses


class _Sequence:
    """One sequence's keys and values (all of them: what is dropped is merely not read again) and what its policy keeps."""

    def __init__(self, model: ReferenceModel, policy: Policy):
        self.m, self.policy = model, policy
        self.k: list[list[np.ndarray]] = [[] for _ in range(model.layers)]
        self.v: list[list[np.ndarray]] = [[] for _ in range(model.layers)]
        self.length = 0
        self.closest_victim = self.closest_share = np.inf
        self.kept: list[list[list[int]]] = []  # [layer][kv head], tova and h2o
        self.scores: list[list[dict[int, float]]] = []

    @property
    def by_scores(self) -> bool:
        return self.policy.kind in ("tova", "h2o")

    def fork(self) -> _Sequence:
        other = copy.copy(self)
        other.k, other.v = [list(k) for k in self.k], [list(v) for v in self.v]
        other.kept, other.scores = copy.deepcopy(self.kept), copy.deepcopy(self.scores)
        return other

    def prefill(self, prompt: list[int]) -> np.ndarray:
        m = self.m
        x = m.w["model.embed_tokens.weight"][prompt]
        for i in range(m.layers):
            q, k, v = m.qkv(i, x)
            self.k[i], self.v[i] = list(k), list(v)
            attended = np.zeros((len(prompt), m.q_heads, m.dim))
            sums: list[dict[int, float]] = [dict.fromkeys(range(len(prompt)), 0.0) for _ in range(m.kv_heads)]
            for t in range(len(prompt)) if not self.by_scores else ():
                seen, q_position, key_positions = m.visible(self.policy, t)
                attended[t], _ = m.attend(q[t], q_position, k, v, [seen] * m.kv_heads, [key_positions] * m.kv_heads)
            if self.by_scores:
                attended, p = m.attend_causal(q, k, v)
                for head in range(m.q_heads):
                    for j, share in enumerate(p[head].sum(0)):
                        sums[head // m.group][j] += share
                self.cut(range(len(prompt)), sums, list(p[:, -1]))
            x = m.finish_layer(i, x, attended)
        self.length = len(prompt)
        return x[-1]

    def decode(self, token: int) -> np.ndarray:
        m, t = self.m, self.length
        x = m.w["model.embed_tokens.weight"][[token]]
        for i in range(m.layers):
            q, k, v = m.qkv(i, x)
            self.k[i].append(k[0])
            self.v[i].append(v[0])
            keys, values = np.array(self.k[i]), np.array(self.v[i])
            if self.by_scores:
                seen = [np.array([*self.kept[i][h], t]) for h in range(m.kv_heads)]
                attended, p = m.attend(q[0], t, keys, values, seen, seen)
                self.drop_one(i, seen, p)
            else:
                seen_by_all, q_position, key_positions = m.visible(self.policy, t)
                attended, _ = m.attend(q[0], q_position, keys, values, [seen_by_all] * m.kv_heads, [key_positions] * m.kv_heads)
            x = m.finish_layer(i, x, attended)
        self.length += 1
        return x[0]

    def top(self, candidates: list[int], score: dict[int, float], count: int) -> list[int]:
        """The highest scores; equal ones, the newer position."""
        order = sorted(candidates, key=lambda j: (-score[j], -j))
        if 0 < count < len(order):
            kept, dropped = score[order[count - 1]], score[order[count]]
            self.closest_victim = min(self.closest_victim, kept - dropped)
            self.closest_share = min(self.closest_share, (kept - dropped) / kept if kept > 0 else 0.0)
        return sorted(order[:count])

    def choose(self, positions: list[int], score: dict[int, float]) -> list[int]:
        p = self.policy
        if p.kind == "tova":
            return positions if len(positions) <= p.budget else self.top(positions, score, p.budget)
        if len(positions) <= p.heavy + p.recent:
            return positions
        return self.top(positions[: -p.recent], score, p.heavy) + positions[-p.recent :]

    def cut(self, positions, sums: list[dict[int, float]], last: list[np.ndarray]) -> None:
        m, positions = self.m, list(positions)
        if self.policy.kind == "tova":
            mean = np.mean(last, axis=0)
            kept = self.choose(positions, dict(zip(positions, mean)))
            self.kept.append([kept] * m.kv_heads)
            self.scores.append([{} for _ in range(m.kv_heads)])
        else:
            self.kept.append([self.choose(positions, sums[h]) for h in range(m.kv_heads)])
            self.scores.append([{j: sums[h][j] for j in self.kept[-1][h]} for h in range(m.kv_heads)])

    def drop_one(self, i: int, seen: list[np.ndarray], p: list[np.ndarray]) -> None:
        m = self.m
        if self.policy.kind == "tova":
            positions = [int(j) for j in seen[0]]
            self.kept[i] = [self.choose(positions, dict(zip(positions, np.mean(p, axis=0))))] * m.kv_heads
            return
        for h in range(m.kv_heads):
            positions = [int(j) for j in seen[h]]
            score = {j: self.scores[i][h].get(j, 0.0) for j in positions}
            for head in range(h * m.group, (h + 1) * m.group):
                for j, share in zip(positions, p[head]):
                    score[j] += share
            self.kept[i][h] = self.choose(positions, score)
            self.scores[i][h] = {j: score[j] for j in self.kept[i][h]}

    def kept_positions(self) -> list[list[list[int]]]:
        m = self.m
        if not self.by_scores:
            return [[[int(j) for j in m.visible(self.policy, self.length - 1)[0]]] for _ in range(m.layers)]
        lists = 1 if self.policy.kind == "tova" else m.kv_heads
        return [[list(map(int, self.kept[i][h])) for h in range(lists)] for i in range(m.layers)]
