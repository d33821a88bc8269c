"""One process that prints a loss as Hugging Face's Trainer does, and no process group."""

import argparse
import time

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--delay", type=float, default=0.0)
asked = parser.parse_args()
for step in range(1, asked.steps + 1):
    time.sleep(asked.delay)
    print(f"step {step}/{asked.steps} loss {1 / step:.4f}", flush=True)
