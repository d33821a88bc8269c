"""A loop of Hugging Face Accelerate."""

import argparse
import time

import torch
from accelerate import Accelerator

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--delay", type=float, default=0.0)
asked = parser.parse_args()
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model, optimizer = accelerator.prepare(model, optimizer)
for step in range(1, asked.steps + 1):
    x = torch.randn(16, 8)
    optimizer.zero_grad()
    accelerator.backward(torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)))
    optimizer.step()
    time.sleep(asked.delay)
    accelerator.print(f"step {step} of {asked.steps} on {accelerator.num_processes}", flush=True)
accelerator.end_training()
