"""Reinforcement learning: a policy gradient with a learnt baseline, in a tiny world of its own.

A cart on a line is pushed left or right and should stay at the origin. A "sample" of the data set
is the seed of an episode, so the trainer's exactly-once order and its resume apply to episodes as
they do to images. Policy and value network have an optimizer each, and step in one `training_step`.

    python train.py --updates 150 --root ./policy
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import rekindle as rk

STEPS, DISCOUNT = 30, 0.95


class Carts:
    """Many carts at once: position and velocity, pushed by +-1."""

    def __init__(self, starts: torch.Tensor) -> None:
        self.state = starts

    def push(self, right: torch.Tensor) -> torch.Tensor:
        """Move one tick on; the reward is highest at the origin."""
        position, velocity = self.state.unbind(dim=1)
        velocity = 0.9 * velocity + 0.1 * (2.0 * right - 1.0)
        position = position + 0.5 * velocity
        self.state = torch.stack([position, velocity], dim=1)
        return -position.abs()


class Episodes(Dataset):
    """Where an episode begins, drawn from the episode's number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return 2 * torch.rand(2, generator=generator) - 1


class Agent(rk.Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        self.value = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def play(self, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States [T, B, 2], actions [T, B] and rewards [T, B] of whole episodes."""
        carts = Carts(starts)
        states, actions, rewards = [], [], []
        with torch.no_grad():
            for _ in range(STEPS):
                states.append(carts.state)
                actions.append(torch.bernoulli(torch.sigmoid(self.policy(carts.state)[:, 0])))
                rewards.append(carts.push(actions[-1]))
        return torch.stack(states), torch.stack(actions), torch.stack(rewards)

    def training_step(self, batch, batch_idx):
        policy, value = self.optimizers()
        states, actions, rewards = self.play(batch)
        returns = torch.zeros_like(rewards)
        following = torch.zeros_like(rewards[0])
        for tick in reversed(range(STEPS)):
            following = rewards[tick] + DISCOUNT * following
            returns[tick] = following

        expected = self.value(states)[..., 0]
        self.step(value, nn.functional.mse_loss(expected, returns))

        advantage = returns - expected.detach()
        surprise = nn.functional.binary_cross_entropy_with_logits(
            self.policy(states)[..., 0], actions, reduction="none"
        )
        self.step(policy, (surprise * advantage).mean(), clip=1.0)
        self.log("reward", rewards.mean(), prog_bar=True)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.policy.parameters(), lr=0.01),
            torch.optim.Adam(self.value.parameters(), lr=0.02),
        ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--root", default="./policy")
    given = parser.parse_args()
    rk.seed_everything(1)
    agent = Agent()
    trainer = rk.Trainer(max_steps=given.updates, root=given.root)
    trainer.fit(agent, DataLoader(Episodes(6400), batch_size=64, shuffle=True))
    unseen = torch.stack([Episodes(10_000)[index] for index in range(9_000, 9_200)])
    torch.manual_seed(0)
    rewards = agent.play(unseen)[2]
    trainer.print(
        f"distance {-rewards[-10:].mean():.3f} from the origin after {trainer.global_step} updates"
    )


if __name__ == "__main__":
    main()
