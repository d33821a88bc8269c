"""Two networks against each other, each with an optimizer of its own.

A generator turns noise into points of the plane; a critic tells them from points on a ring. The
module owns its update rule (``automatic_optimization = False``), and the run is resumable all the
same: optimizers, their schedules and every draw of noise continue where they stopped.

    python train.py --epochs 30 --root ./gan
"""

import argparse
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

NOISE = 4


def ring(points: int) -> torch.Tensor:
    """Points at a distance of about 2 from the origin."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(points, generator=generator)
    radius = 2 + 0.05 * torch.randn(points, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2),
        nn.Linear(64, outputs),
    )  # fmt: skip


class Gan(rk.Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = network(NOISE, 2)
        self.critic = network(2, 1)

    def forward(self, points: int) -> torch.Tensor:
        return self.generator(torch.randn(points, NOISE, device=self.device))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        critic, generator = self.optimizers()
        softplus = nn.functional.softplus

        fake = self(len(real)).detach()
        loss = softplus(-self.critic(real)).mean() + softplus(self.critic(fake)).mean()
        self.step(critic, loss)
        self.log("critic", loss, prog_bar=True)

        # The critic only judges now; its own gradients are not needed.
        self.toggle_optimizer(generator)
        loss = softplus(-self.critic(self(len(real)))).mean()
        self.step(generator, loss)
        self.untoggle_optimizer(generator)
        self.log("generator", loss, prog_bar=True)

        for schedule in self.lr_schedulers():
            schedule.step()

    def configure_optimizers(self):
        found = [
            torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.99))
            for part in (self.critic, self.generator)
        ]
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LinearLR
        return found, [schedule(optimizer, 1.0, 0.05, total) for optimizer in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--root", default="./gan")
    given = parser.parse_args()
    rk.seed_everything(1)
    model = Gan()
    trainer = rk.Trainer(max_epochs=given.epochs, root=given.root)
    trainer.fit(model, DataLoader(TensorDataset(ring(2048)), batch_size=128, shuffle=True))
    with torch.no_grad():
        radius = model(2000).norm(dim=1)
    trainer.print(
        f"radius {radius.mean():.2f} +- {radius.std():.2f} after {trainer.global_step} steps and "
        f"{trainer.optimizer_steps} updates"
    )


if __name__ == "__main__":
    main()
