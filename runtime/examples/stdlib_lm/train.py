"""A small language model over the text of the Python standard library's own sources.

    python train.py                                     # one process, about a minute
    torchrun --nproc-per-node 2 train.py                # two, same result
    kubectl apply -f job.yaml                           # pods, and any of them may go away

It reads bytes, so there is no tokenizer and nothing to download: 256 symbols, a causal transformer
of two layers, and the sources that came with the interpreter.
"""

import argparse
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import rekindle as rk

LANES = 4
"""Micro-batches per step: the step can be shared out over up to so many processes."""


def corpus(limit: int) -> np.ndarray:
    """The bytes of the standard library's top-level modules, in order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts, size = [], 0
    for path in sorted(folder.glob("*.py")):
        text = path.read_bytes()
        parts.append(np.frombuffer(text, dtype=np.uint8))
        size += len(text)
        if size >= limit:
            break
    return np.concatenate(parts)[:limit]


class Windows(Dataset):
    """Stretches of the text, without overlap, each with the byte that follows every byte."""

    def __init__(self, text: np.ndarray, length: int):
        self.text, self.length = text, length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, index: int):
        start = index * self.length
        piece = torch.from_numpy(self.text[start : start + self.length + 1].astype(np.int64))
        return piece[:-1], piece[1:]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x))
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True
        )
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class LanguageModel(rk.Module):
    def __init__(
        self,
        lr: float,
        length: int,
        width: int = 96,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.symbols = nn.Embedding(256, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.symbols(x) + places)))

    def _loss(self, batch) -> torch.Tensor:
        given, wanted = batch
        return nn.functional.cross_entropy(self(given).flatten(0, 1), wanted.flatten())

    def training_step(self, batch, batch_idx):
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self._loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches + 1
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Sources(rk.DataModule):
    def __init__(self, batch_size: int, length: int, limit: int):
        self.batch_size, self.length, self.limit = batch_size, length, limit

    def setup(self, stage: str) -> None:
        text = corpus(self.limit)
        border = len(text) * 9 // 10
        self.train = Windows(text[:border], self.length)
        self.val = Windows(text[border:], self.length)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="over all processes")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", default="./checkpoints/stdlib_lm")
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument("--length", type=int, default=64, help="bytes per sample")
    parser.add_argument("--bytes", type=int, default=300_000, help="how much text to read")
    args = parser.parse_args()

    rk.seed_everything(args.seed)
    trainer = rk.Trainer(
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        global_batch_size=args.batch_size,
        gradient_clip_val=1.0,
        root=args.root,
        seed=args.seed,
        checkpoint_every=rk.Every(steps=100),
        log_every_n_steps=10,
    )
    data = Sources(args.batch_size // LANES, args.length, args.bytes)
    trainer.fit(LanguageModel(args.lr, args.length), data)
    if "val/loss" in trainer.callback_metrics:
        bits = float(trainer.callback_metrics["val/loss"]) / float(np.log(2))
        trainer.print(f"{bits:.3f} bits per byte after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
