"""Gradients lie where autograd puts them; partial sums exist only where bits are promised for them.

Memory is that of the process: Linux forgets its high-water mark when it is asked to.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

# Not of processes, but of time and memory that the quick tests do not have.
pytestmark = pytest.mark.processes

WIDTH = 3072
SIZE = WIDTH * WIDTH * 4
"""Bytes of the one weight; above 32 MiB, so that freed memory goes back at once."""
LANES = 8


class Net(rk.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(width, width, bias=False)
        self.places = set()

    def training_step(self, batch, batch_idx):
        return self.fc(batch[0]).square().mean()

    def on_after_backward(self):
        self.places.add(self.fc.weight.grad.data_ptr())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, foreach=False)


def resident(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def trained(guarantee, width=WIDTH):
    """The weight after a step of 8 micro-batches, what it took, and where gradients were."""
    net = Net(width)
    data = TensorDataset(torch.randn(LANES, width, generator=torch.Generator().manual_seed(0)))
    trainer = rk.Trainer(
        max_epochs=1,
        accumulate_grad_batches=LANES,
        data={"guarantee": guarantee},
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    trainer.fit(net, DataLoader(data, 1))
    return net.fc.weight.detach(), (resident("VmHWM") - before) / SIZE, net.places


def test_partial_sums_take_memory_in_bitwise_mode_only_and_change_nothing_else():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"memory cannot be measured here: {error}")
    trained("order", 8)  # what is allocated once in a process
    usual, took, places = trained("order")
    exact, took_more, _ = trained("bitwise")
    assert torch.allclose(usual, exact, rtol=1e-5, atol=1e-7)
    assert took < 2.5, "the gradient, and the micro-batch's that is added to it"
    assert LANES < took_more < LANES + 3.5
    assert len(places) == 1
