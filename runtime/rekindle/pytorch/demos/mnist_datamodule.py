"""The handwritten digits of MNIST, by torchvision."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch.utils.data import DataLoader, random_split

from rekindle.datamodule import DataModule


def _torchvision(module: str) -> Any:
    try:
        return import_module(f"torchvision.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MNIST needs torchvision, which is not installed: pip install torchvision",
            name=error.name,
        ) from error


def MNIST(*args: Any, **kwargs: Any) -> Any:
    """torchvision's dataset of this name; `download=True` gets it when it is not there."""
    return _torchvision("datasets").MNIST(*args, **kwargs)


class MNISTDataModule(DataModule):
    """Training, validation (the last `val_split` samples of a random order) and test samples."""

    name = "mnist"

    def __init__(
        self,
        data_dir: str = "./data",
        val_split: int = 5000,
        num_workers: int = 16,
        normalize: bool = False,
        seed: int = 42,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.val_split = val_split
        self.num_workers = num_workers
        self.normalize = normalize
        self.seed = seed
        self.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        """Ten digits."""
        return 10

    def prepare_data(self) -> None:
        """Get the data, unless they are there."""
        for train in (True, False):
            MNIST(self.data_dir, train=train, download=True)

    def _samples(self, train: bool) -> Any:
        transform = self.default_transforms
        return MNIST(self.data_dir, train=train, download=False, transform=transform)

    def setup(self, stage: str) -> None:
        """Divide the training samples."""
        samples = self._samples(train=True)
        lengths = [len(samples) - self.val_split, self.val_split]
        order = torch.Generator().manual_seed(42)
        self.dataset_train, self.dataset_val = random_split(samples, lengths, generator=order)

    def _loader(self, samples: Any, shuffle: bool) -> Any:
        return DataLoader(
            samples,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            drop_last=True,
            pin_memory=True,
        )

    def train_dataloader(self) -> Any:
        """Shuffled."""
        return self._loader(self.dataset_train, shuffle=True)

    def val_dataloader(self) -> Any:
        """In order."""
        return self._loader(self.dataset_val, shuffle=False)

    def test_dataloader(self) -> Any:
        """In order."""
        return self._loader(self._samples(train=False), shuffle=False)

    @property
    def default_transforms(self) -> Callable[..., Any]:
        """To tensors, and around 0 with `normalize`."""
        transforms = _torchvision("transforms")
        steps = [transforms.ToTensor()]
        if self.normalize:
            steps.append(transforms.Normalize(mean=(0.5,), std=(0.5,)))
        made: Callable[..., Any] = transforms.Compose(steps)
        return made
