"""Models and data of random numbers, to try a trainer with."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from rekindle.datamodule import DataModule
from rekindle.model.module import Module


class RandomDataset(Dataset[torch.Tensor]):
    """`length` vectors of `size` numbers."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(Dataset[dict[str, torch.Tensor]]):
    """The same as dicts of ``a``, and ``b``, which is two more."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.data[index]
        return {"a": sample, "b": sample + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[torch.Tensor]):
    """A stream of `count` vectors of `size` numbers."""

    def __init__(self, size: int, count: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """Such a stream that knows its length."""

    def __len__(self) -> int:
        return self.count


class BoringModel(Module):
    """One linear layer; derive from it and change what is to be tried."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer."""
        output: torch.Tensor = self.layer(x)
        return output

    def loss(self, preds: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The distance to labels, by default to ones."""
        wanted = torch.ones_like(preds) if labels is None else labels
        return nn.functional.mse_loss(preds, wanted)

    # It is the name that scripts derived from this class know, not that of an optimizer's step.
    def step(self, batch: Any, *arguments: Any) -> Any:  # type: ignore[override]
        """The loss of a batch."""
        if arguments:
            return super().step(batch, *arguments)
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss, in a dict."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss, by another name."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss, by yet another name."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> Any:
        """SGD, whose rate is divided by ten after each epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> Any:
        """64 samples, one at a time."""
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> Any:
        """The same number of others."""
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> Any:
        """The same number of others."""
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> Any:
        """The same number of others."""
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """The same with manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of the optimizer."""
        optimizer: Any = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(Module):
    """A layer with a rate to choose."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer and a ReLU."""
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The sum of the output."""
        return self(batch).sum()

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Net(nn.Module):
    """A small convolutional network for images of 28 x 28, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithms of the classes' probabilities."""
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = torch.flatten(self.dropout1(nn.functional.max_pool2d(x, 2)), 1)
        x = self.fc2(self.dropout2(torch.relu(self.fc1(x))))
        return nn.functional.log_softmax(x, dim=1)


class BoringDataModule(DataModule):
    """64 random samples for each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    def _quarter(self, number: int) -> "Subset[torch.Tensor]":
        return Subset(self.random_full, range(64 * number, 64 * (number + 1)))

    def setup(self, stage: str) -> None:
        """Take the stage's samples."""
        if stage == "fit":
            self.random_train = self._quarter(0)
        if stage in ("fit", "validate"):
            self.random_val = self._quarter(1)
        if stage == "test":
            self.random_test = self._quarter(2)
        if stage == "predict":
            self.random_predict = self._quarter(3)

    def train_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_predict)


class BoringDataModuleNoLen(DataModule):
    """A stream without a length for each stage."""

    def setup(self, stage: str) -> None:
        """Make the stage's stream."""
        if stage == "fit":
            self.random_train = RandomIterableDataset(32, 512)
        if stage in ("fit", "validate"):
            self.random_val = RandomIterableDataset(32, 128)
        if stage == "test":
            self.random_test = RandomIterableDataset(32, 256)
        if stage == "predict":
            self.random_predict = RandomIterableDataset(32, 64)

    def train_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> Any:
        """One at a time."""
        return DataLoader(self.random_predict)


class IterableBoringDataModule(DataModule):
    """Two loaders for each stage, one of them over a stream."""

    def setup(self, stage: str) -> None:
        """Make the stage's data."""
        if stage == "fit":
            self.train_datasets = _both(16)
        if stage in ("fit", "validate"):
            self.val_datasets = _both(32)
        if stage == "test":
            self.test_datasets = _both(64)
        if stage == "predict":
            self.predict_datasets = _both(128)

    def train_dataloader(self) -> Any:
        """A loader for each."""
        return [DataLoader(data) for data in self.train_datasets]

    def val_dataloader(self) -> Any:
        """A loader for each."""
        return [DataLoader(data) for data in self.val_datasets]

    def test_dataloader(self) -> Any:
        """A loader for each."""
        return [DataLoader(data) for data in self.test_datasets]

    def predict_dataloader(self) -> Any:
        """A loader for each."""
        return [DataLoader(data) for data in self.predict_datasets]


def _both(count: int) -> list[Dataset[torch.Tensor]]:
    return [RandomDataset(4, count), RandomIterableDataset(4, count)]
