#!/usr/bin/env python3
"""How near an order of eviction can come to Belady's rule on a trace with Mooncake's prefix hashes, by what it knows.

  pip install numpy lightgbm scikit-learn
  benchmarks/sim/foresight.py --trace mooncake_conversation.jsonl.gz [--kv-gb 800 1600] [--only learned]

A model of the cache alone, in pieces of 512 tokens: a request takes its pieces when it arrives and holds them until its output is there,
--token-s a token; leaves go first, and nobody waits for room, so that sizes below what is held at once say nothing. Orders:
  lru, pgdsf    as the engine's
  belady        of a leaf, what is asked for again last; never before all others
  one bit       told of each request whether its conversation goes on, with a share of answers that are right; else LRU
  learned       P(asked for within --horizon-s | what could be known, age), by boosted trees. "whole hour": trained on the other
                conversations of the whole trace, later ones too; "online": trained every five minutes on what has been
Prints share of prompt tokens found cached, in percent, and how well the trees tell what comes back from what does not (AUC).
"""

import argparse
import bisect
import gzip
import heapq
import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field

import lightgbm
import numpy as np
from sklearn.metrics import roc_auc_score

PIECE_TOKENS, BLOCK_TOKENS, TOKEN_BYTES = 512, 16, 131072  # Llama 3.1 8B in bf16
AGES_S = np.array([0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 105, 120, 150, 180, 210, 240, 270, 300, 360, 420, 480, 540, 600, 720,
                   900, 1200, 1600, 2400, 3600.0])
RESCORE_S = 5.0  # the worth of what lies in the cache is looked at again this often where it changes with age
FOLDS, TRAIN_EVERY_S = 5, 300.0
AFTER_S = 600.0  # of the trace's end: what comes later is not seen, so these requests do not count for AUC


@dataclass(slots=True)
class Piece:
    parent: "Piece | None"
    depth: int
    blocks: int
    asked: list[int] = field(default_factory=list)  # requests, in order
    here: bool = False
    holders: int = 0
    children: int = 0
    request: int = -1  # the last to use it
    used_s: float = 0.0
    count: int = 0
    clock: float = 0.0
    version: int = 0

    def is_leaf(self) -> bool:
        return self.here and self.holders == 0 and self.children == 0


@dataclass(slots=True)
class Request:
    at_s: float
    prompt: int  # tokens
    output: int
    ids: list[int]
    pieces: list[Piece]  # of the prompt, then of the output
    rows: list[int] = field(default_factory=list)  # by piece: see Table


def read_trace(path: str) -> list[Request]:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        lines = sorted((json.loads(line) for line in file), key=lambda line: line["timestamp"])
    known: dict[tuple[int, int, int], Piece] = {}
    requests = []
    for number, line in enumerate(lines):
        last, pieces = None, []
        for depth, name in enumerate(line["hash_ids"]):
            tokens = min(PIECE_TOKENS, line["input_length"] - depth * PIECE_TOKENS)
            fresh = Piece(last, depth, math.ceil(tokens / BLOCK_TOKENS))
            last = known.setdefault((id(last), name, tokens), fresh)
            last.asked.append(number)
            pieces.append(last)
        pieces.append(Piece(last, len(pieces), math.ceil(line["output_length"] / BLOCK_TOKENS)))
        requests.append(Request(line["timestamp"] / 1000, line["input_length"], line["output_length"], line["hash_ids"], pieces))
    return requests


def next_request(piece: Piece, after: int) -> float:
    place = bisect.bisect_right(piece.asked, after)
    return piece.asked[place] if place < len(piece.asked) else math.inf


class Cache:
    def __init__(self, blocks: int, worth, changes_with_age: bool = False):
        self.blocks, self.worth, self.changes = blocks, worth, changes_with_age
        self.used, self.clock, self.scored_s = 0, 0.0, 0.0
        self.leaves: list[tuple] = []  # heap: worth, last use, depth, number of the entry, piece, its version

    def key(self, piece: Piece, now_s: float) -> tuple:
        piece.version += 1
        return (self.worth(piece, now_s), piece.used_s, -piece.depth, id(piece), piece, piece.version)

    def enter(self, piece: Piece, now_s: float) -> None:
        if piece.is_leaf():
            heapq.heappush(self.leaves, self.key(piece, now_s))

    def rescore(self, now_s: float) -> None:
        if not self.changes or now_s - self.scored_s < RESCORE_S:
            return
        self.scored_s = now_s
        leaves = [entry[4] for entry in self.leaves if entry[5] == entry[4].version and entry[4].is_leaf()]
        self.leaves = [self.key(piece, now_s) for piece in leaves]
        heapq.heapify(self.leaves)

    def evict(self, now_s: float) -> None:
        while self.leaves:
            worth, *_, piece, version = heapq.heappop(self.leaves)
            if version != piece.version or not piece.is_leaf():
                continue
            self.clock = max(self.clock, worth)
            piece.here, piece.count = False, 0
            self.used -= piece.blocks
            if piece.parent is not None:
                piece.parent.children -= 1
                self.enter(piece.parent, now_s)
            return
        raise SystemExit("what is held at once does not fit: give more with --kv-gb")

    def take(self, number: int, request: Request) -> int:
        """The tokens of its prompt that were there."""
        self.rescore(request.at_s)
        found = next((i for i, piece in enumerate(request.pieces) if not piece.here), len(request.pieces))
        for piece in request.pieces[:found]:
            piece.holders += 1
        for piece in request.pieces[found:]:
            while self.used + piece.blocks > self.blocks:
                self.evict(request.at_s)
            piece.here, piece.holders = True, 1
            self.used += piece.blocks
            if piece.parent is not None:
                piece.parent.children += 1
        for piece in request.pieces:
            piece.request, piece.used_s, piece.clock = number, request.at_s, self.clock
            piece.count += 1
        return min(found * PIECE_TOKENS, request.prompt - 1)

    def give_back(self, request: Request, now_s: float) -> None:
        for piece in reversed(request.pieces):
            piece.holders -= 1
            piece.used_s = max(piece.used_s, now_s)
            self.enter(piece, now_s)


def hit_rate(requests: list[Request], gigabytes: float, token_s: float, worth, changes: bool = False) -> float:
    for piece in (piece for request in requests for piece in request.pieces):
        piece.here, piece.holders, piece.children, piece.count = False, 0, 0, 0
    cache = Cache(int(gigabytes * 1e9 / (BLOCK_TOKENS * TOKEN_BYTES)), worth, changes)
    ends, found = [], 0  # of requests: when, and whose
    for number, request in enumerate(requests):
        while ends and ends[0][0] <= request.at_s:
            end_s, other = heapq.heappop(ends)
            cache.give_back(requests[other], end_s)
        found += cache.take(number, request)
        heapq.heappush(ends, (request.at_s + token_s * request.output, number))
    return 100 * found / sum(request.prompt for request in requests)


class Table:
    """A row for each run of a request's pieces that have one history: what could be known of them, and when they come back."""

    def __init__(self, requests: list[Request]):
        told, at_s, blocks, conversation = [], [], [], []
        again = []  # its pieces, counted by the next request
        talks: dict[int, list[int]] = {}  # requests by conversation, which is named by its first piece behind the system's
        uses: dict[int, tuple[int, int]] = {}  # by piece: its last request and how many have asked for it
        for number, request in enumerate(requests):
            name = request.ids[1] if len(request.ids) > 1 else -1 - number
            talk = talks.setdefault(name, [])
            known, before = self.of_request(requests, talk, request), None
            talk.append(number)
            for depth, piece in enumerate(request.pieces[:-1]):
                history = (*uses.get(id(piece), (-1, 0)), piece.blocks)
                uses[id(piece)] = (number, history[1] + 1)
                if history != before:
                    before = history
                    told.append([*known, depth, len(request.ids) - depth, piece.blocks, history[1]])
                    for column, first in ((again, Counter()), (at_s, request.at_s), (blocks, 0), (conversation, name)):
                        column.append(first)
                blocks[-1] += piece.blocks
                again[-1][next_request(piece, number)] += 1
                request.rows.append(len(told) - 1)
            request.rows.append(request.rows[-1])  # the output goes with the prompt's end
        self.blocks, self.conversation = np.array(blocks, float), np.array(conversation)
        self.told = np.column_stack([np.array(told), self.blocks])
        self.at_s, self.end_s = np.array(at_s), requests[-1].at_s
        most = [counts.most_common(1)[0][0] for counts in again]
        self.gap_s = np.array([requests[int(one)].at_s if one < math.inf else math.inf for one in most]) - self.at_s

    @staticmethod
    def of_request(requests: list[Request], talk: list[int], request: Request) -> list[float]:
        turns = [requests[i] for i in talk] + [request]
        gaps = [b.at_s - a.at_s for a, b in zip(turns, turns[1:])] or [-1.0]
        last = turns[-2] if talk else None
        shared = next((i for i, (a, b) in enumerate(zip(request.ids, last.ids)) if a != b), len(last.ids)) if last else 0
        return [len(talk), request.prompt, request.output, gaps[-1], gaps[-2] if len(gaps) > 1 else -1.0, sum(gaps) / len(gaps),
                min(gaps), max(gaps), request.prompt - last.prompt if last else -1, last.output if last else -1,
                request.prompt - last.prompt - last.output if last else -1,
                request.prompt - PIECE_TOKENS * shared, turns[0].prompt, sum(turn.output for turn in turns) / len(turns)]

    def train(self, rows: np.ndarray, until_s: float, leaves: int, rounds: int) -> lightgbm.Booster:
        """The chance that what is not yet asked for at one of AGES_S is before the next, by what was seen until then."""
        seen, age, comes = [], [], []
        for place, (since_s, to_s) in enumerate(zip(AGES_S, AGES_S[1:])):
            left = rows[(self.gap_s[rows] >= since_s) & (self.at_s[rows] + np.minimum(self.gap_s[rows], to_s) <= until_s)]
            seen.append(left)
            age.append(np.full(len(left), place))
            comes.append(self.gap_s[left] < to_s)
        rows = np.concatenate(seen)
        told = np.column_stack([self.told[rows], np.concatenate(age)])
        examples = lightgbm.Dataset(told, np.concatenate(comes).astype(float), weight=self.blocks[rows])
        settings = {"objective": "binary", "num_leaves": leaves, "min_data_in_leaf": 60, "learning_rate": 0.05, "num_threads": 1,
                    "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1, "verbose": -1, "seed": 1}
        return lightgbm.train(settings, examples, rounds)

    def chances(self, trees: lightgbm.Booster, rows: np.ndarray, horizon_s: float) -> np.ndarray:
        """By row and age: that it is asked for within the horizon."""
        places = range(len(AGES_S) - 1)
        hazard = np.stack([trees.predict(np.column_stack([self.told[rows], np.full(len(rows), place)])) for place in places], axis=1)
        stays = np.ones_like(hazard)
        for place in places:
            within = [i for i in places if i >= place and AGES_S[i] < AGES_S[place] + horizon_s]
            stays[:, place] = np.prod(1 - hazard[:, within], axis=1)
        return 1 - stays

    def whole_hour(self, horizon_s: float) -> np.ndarray:
        names = np.unique(self.conversation)
        folds = np.random.default_rng(1).integers(FOLDS, size=len(names))[np.searchsorted(names, self.conversation)]
        chances = np.zeros((len(folds), len(AGES_S) - 1))
        for one in range(FOLDS):
            trees = self.train(np.flatnonzero(folds != one), math.inf, leaves=31, rounds=200)
            chances[folds == one] = self.chances(trees, np.flatnonzero(folds == one), horizon_s)
        return chances

    def online(self, horizon_s: float) -> np.ndarray:
        chances = np.tile(1 / (1 + AGES_S[:-1]), (len(self.at_s), 1))  # until there is something to learn from: the youngest stay
        for now_s in np.arange(TRAIN_EVERY_S, self.end_s, TRAIN_EVERY_S):
            rows = np.flatnonzero(self.at_s < now_s + TRAIN_EVERY_S)
            trees = self.train(np.flatnonzero(self.at_s < now_s), now_s, leaves=15, rounds=100)
            later = self.at_s[rows, None] + AGES_S[None, :-1] >= now_s
            chances[rows] = np.where(later, self.chances(trees, rows, horizon_s), chances[rows])
        return chances

    def auc(self, chances: np.ndarray, age_s: float, horizon_s: float) -> float:
        place = int(np.searchsorted(AGES_S, age_s))
        rows = np.flatnonzero((self.gap_s >= age_s) & (self.at_s < self.end_s - AFTER_S))
        return roc_auc_score(self.gap_s[rows] < age_s + horizon_s, chances[rows, place], sample_weight=self.blocks[rows])


def by_chance(requests: list[Request], chances: np.ndarray):
    def worth(piece: Piece, now_s: float) -> float:
        request = requests[piece.request]
        place = bisect.bisect_right(AGES_S, now_s - request.at_s, hi=len(AGES_S) - 1) - 1
        return chances[request.rows[piece.depth], place]
    return worth


def by_one_bit(requests: list[Request], share: float):
    draw = random.Random(1)
    goes_on = [next_request(request.pieces[min(1, len(request.ids) - 1)], number) < math.inf for number, request in enumerate(requests)]
    told = [truth == (draw.random() < share) for truth in goes_on]

    # Of one that is rightly said to go on, each piece by itself: a leaf that nobody asks for again would shield its parents.
    def worth(piece: Piece, _: float) -> float:
        return float(told[piece.request] and not (goes_on[piece.request] and next_request(piece, piece.request) == math.inf))
    return worth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", required=True)
    parser.add_argument("--kv-gb", type=float, nargs="+", default=[800, 1600])
    parser.add_argument("--token-s", type=float, default=0.19, help="what the simulated H100 takes at 256 sequences")
    parser.add_argument("--horizon-s", type=float, default=120)
    parser.add_argument("--only", default="", help="orders whose name has this in it")
    args = parser.parse_args()
    requests = read_trace(args.trace)
    print("KV cache, GB".ljust(40), *(f"{size:8.0f}" for size in args.kv_gb))

    def play(name: str, worth, changes: bool = False) -> None:
        rates = [hit_rate(requests, size, args.token_s, worth, changes) for size in args.kv_gb]
        print(name.ljust(40), *(f"{rate:8.2f}" for rate in rates), flush=True)

    orders = {"lru": lambda *_: 0.0, "pgdsf": lambda piece, _: piece.clock + piece.count,
              "belady": lambda piece, _: -next_request(piece, piece.request)}
    orders |= {f"one bit, right in {share:.0%}": by_one_bit(requests, share) for share in (1, 0.95, 0.9, 0.8, 0.7, 0.5)}
    for name in filter(lambda name: args.only in name, orders):
        play(name, orders[name])
    table = Table(requests)
    learners = {"learned, whole hour": table.whole_hour, "learned, online": table.online}
    for name in filter(lambda name: args.only in name, learners):
        chances = learners[name](args.horizon_s)
        play(name, by_chance(requests, chances), changes=True)
        aucs = [f"{table.auc(chances, age_s, args.horizon_s):.3f} at {age_s} s" for age_s in (0, 60, 120, 300)]
        print("  AUC, by age of what is not asked for yet:", ", ".join(aucs), flush=True)


if __name__ == "__main__":
    main()
