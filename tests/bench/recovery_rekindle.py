"""What the pods of the recovery benchmark train under Rekindle; it notes each optimizer step."""

import argparse
import os
import time

import torch
from recovery_steps import StepLog
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Net(rk.Module):
    """A perceptron, as slow as asked; its optimizer tells when it has stepped."""

    def __init__(self, width: int, delay: float, lanes: int, log: StepLog) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, width), torch.nn.ReLU(),
            torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, 1),
        )  # fmt: skip
        self.delay, self.lanes, self.log_of_steps = delay, lanes, log

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.delay:
            time.sleep(self.delay * self.trainer.world_size / self.lanes)
        return ((self.layers(x) - y) ** 2).mean()

    def configure_optimizers(self):
        # Fused: the plain one takes longer for 100 MB of state than the recovery itself.
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-4, fused=True)
        optimizer.register_step_post_hook(
            lambda *_: self.log_of_steps.note(self.trainer.global_step + 1)
        )
        return optimizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--notes", required=True, help="folder for the times of steps")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per step, roughly")
    parser.add_argument("--lanes", type=int, default=6)
    chosen = parser.parse_args()
    environment = os.environ
    log = StepLog(
        chosen.notes,
        f"{environment['REKINDLE_POD_NAME']}@{environment['REKINDLE_POD_UID']}"
        f"@{environment['LOCAL_RANK']}",
        generation=int(environment["REKINDLE_ROUND"]),
        world=int(environment["WORLD_SIZE"]),
    )
    rk.seed_everything(7)
    x = torch.randn(12_000, 32, generator=torch.Generator().manual_seed(0))
    trainer = rk.Trainer(max_steps=10**9, global_batch_size=4 * chosen.lanes, seed=7)
    trainer.fit(
        Net(chosen.width, chosen.delay, chosen.lanes, log),
        DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4, shuffle=True),
    )


if __name__ == "__main__":
    main()
