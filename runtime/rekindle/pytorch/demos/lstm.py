"""A language model that carries its state from batch to batch."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from rekindle.model.module import Module
from rekindle.pytorch.demos.transformer import WikiText2


class SimpleLSTM(nn.Module):
    """Words through an LSTM; gives logarithms of the next words' probabilities, and its state."""

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 512,
        nhid: int = 512,
        nlayers: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.vocab_size, self.nlayers, self.nhid = vocab_size, nlayers, nhid
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)
        self.init_weights()

    def init_weights(self) -> None:
        """Small weights, no bias."""
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(
        self, input: torch.Tensor, hidden: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Logarithms of probabilities, a row for each word, and the state after the batch."""
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.vocab_size)
        return nn.functional.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The state before the first batch."""
        weight, shape = self.encoder.weight, (self.nlayers, batch_size, self.nhid)
        return weight.new_zeros(shape), weight.new_zeros(shape)


class SequenceSampler(Sampler[list[int]]):
    """Batches in which each row goes on where it was in the batch before."""

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.chunk_size = len(dataset) // batch_size

    def __iter__(self) -> Iterator[list[int]]:
        end = len(self.dataset) - len(self.dataset) % self.batch_size
        for first in range(self.chunk_size):
            yield list(range(first, end, self.chunk_size))

    def __len__(self) -> int:
        return self.chunk_size


class LightningLSTM(Module):
    """The LSTM on WikiText-2."""

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = SimpleLSTM(vocab_size=vocab_size)
        self.hidden: tuple[torch.Tensor, torch.Tensor] | None = None

    def on_train_epoch_end(self) -> None:
        """Begin the next epoch without a state."""
        self.hidden = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of the next words, from the state that the batch before has left."""
        words, target = batch
        before = self.hidden or self.model.init_hidden(words.size(0))
        output, self.hidden = self.model(words, (before[0].detach(), before[1].detach()))
        loss = nn.functional.nll_loss(output, target.view(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state, which the next batch begins with."""
        if self.hidden is not None:
            checkpoint["hidden"] = [part.detach() for part in self.hidden]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state back."""
        kept = checkpoint.get("hidden")
        self.hidden = None if kept is None else (kept[0], kept[1])

    def prepare_data(self) -> None:
        """Get the text."""
        WikiText2(download=True)

    def train_dataloader(self) -> Any:
        """20 rows."""
        dataset = WikiText2()
        return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=20))

    def configure_optimizers(self) -> Any:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=20.0)
