#!/usr/bin/env python3
"""Writes a trace in Mooncake's form: questions, one after the other at random moments, about fifty documents of 4k to 32k tokens.

  benchmarks/sim/documents_trace.py --mean-s 4 [--requests 1500] [--seed 7] > documents.jsonl

Each is a document's tokens and 200 of its own, and 100 tokens of output: what is asked for again has mostly left the device.
"""

import argparse
import json
import random

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--mean-s", type=float, required=True, help="mean time between two requests, seconds")
parser.add_argument("--requests", type=int, default=1500)
parser.add_argument("--seed", type=int, default=7)
args = parser.parse_args()

draw = random.Random(args.seed)
documents = [[1000 * d + i for i in range(draw.choice([8, 16, 24, 32, 48, 64]))] for d in range(50)]  # of 512 tokens each
arrival_ms = 0.0
for request in range(args.requests):
    arrival_ms += 1000 * draw.expovariate(1 / args.mean_s)
    document = draw.choice(documents)
    print(json.dumps({"timestamp": int(arrival_ms), "input_length": 512 * len(document) + 200, "output_length": 100,
                      "hash_ids": document + [1_000_000 + request]}))
