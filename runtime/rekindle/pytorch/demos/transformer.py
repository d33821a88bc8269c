"""A small language model and the text it learns from."""

import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rekindle.model.module import Module

_VOCABULARY = 33278
"""Words of WikiText-2."""
_TEXT = (
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
    "train.txt"
)


class Transformer(nn.Module):
    """Encoder and decoder over words; gives logarithms of the next words' probabilities."""

    def __init__(
        self,
        vocab_size: int = _VOCABULARY,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            dropout=dropout,
            batch_first=True,
        )
        self.decoder = nn.Linear(ninp, vocab_size)
        self.ninp = ninp
        self.vocab_size = vocab_size

    def generate_square_subsequent_mask(self, size: int) -> torch.Tensor:
        """Minus infinity where a place would see a later one, else 0."""
        return torch.full((size, size), float("-inf")).triu(1)

    def forward(
        self, inputs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logarithms of probabilities, a row for each word of all samples."""
        if mask is None:
            mask = self.generate_square_subsequent_mask(inputs.shape[1]).to(inputs.device)
        source, wanted = (
            self.pos_encoder(self.embedding(words) * math.sqrt(self.ninp))
            for words in (inputs, target)
        )
        output = self.decoder(self.transformer(source, wanted, tgt_mask=mask))
        return nn.functional.log_softmax(output, dim=-1).view(-1, self.vocab_size)


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of a position."""

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        self.dim = dim
        self.max_len = max_len
        self.pe: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The words with the encoding; as in Lightning, that of one position: the length."""
        if self.pe is None:
            self.pe = self._waves(x.device)
        output: torch.Tensor = self.dropout(x + self.pe[:, x.size(1)])
        return output

    def _waves(self, device: torch.device) -> torch.Tensor:
        places = torch.arange(self.max_len, dtype=torch.float, device=device).unsqueeze(1)
        evens = torch.arange(0, self.dim, 2, device=device).float()
        angles = places * torch.exp(evens * (-math.log(10000.0) / self.dim))
        waves = torch.zeros(self.max_len, self.dim, device=device)
        waves[:, 0::2], waves[:, 1::2] = torch.sin(angles), torch.cos(angles)
        return waves.unsqueeze(0)


class WikiText2(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Blocks of words of WikiText-2, and the words that follow each.

    The text is ``data_dir/wikitext-2.txt``; when it is not there, `download` gets it.
    """

    def __init__(
        self, data_dir: Path = Path("./data"), block_size: int = 35, download: bool = True
    ) -> None:
        self.path = Path(data_dir) / "wikitext-2.txt"
        if download:
            self.download(self.path)
        self.data, self.dictionary = tokenize(self.path)
        self.block_size = block_size

    @property
    def vocab_size(self) -> int:
        """Words that differ."""
        return len(self.dictionary)

    def __len__(self) -> int:
        return len(self.data) // self.block_size - 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        begin = index * self.block_size
        end = begin + self.block_size
        return self.data[begin:end], self.data[begin + 1 : end + 1]

    @staticmethod
    def download(destination: Path) -> None:
        """Get the text, unless it is there."""
        if destination.exists():
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = destination.with_suffix(".part")
        try:
            with urllib.request.urlopen(_TEXT, timeout=60) as answer:
                part.write_bytes(answer.read())
        except (urllib.error.URLError, TimeoutError) as error:
            raise RuntimeError(
                f"WikiText2 needs {destination}, and {_TEXT} cannot be reached from here: put the "
                f"text there by hand"
            ) from error
        part.replace(destination)


class Dictionary:
    """Numbers of words, in the order in which they come."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The word's number."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        return len(self.idx2word)


def tokenize(path: Path) -> tuple[torch.Tensor, Dictionary]:
    """The numbers of a text's words; a line ends with ``<eos>``."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: put the text there, or give download=True")
    dictionary = Dictionary()
    with path.open(encoding="utf8") as text:
        numbers = [dictionary.add_word(w) for line in text for w in (*line.split(), "<eos>")]
    return torch.tensor(numbers, dtype=torch.int64), dictionary


class LightningTransformer(Module):
    """The transformer on WikiText-2."""

    def __init__(self, vocab_size: int = _VOCABULARY) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)

    def forward(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The transformer."""
        output: torch.Tensor = self.model(inputs, target)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of the next words."""
        inputs, target = batch
        return nn.functional.nll_loss(self(inputs, target), target.view(-1))

    def configure_optimizers(self) -> Any:
        """SGD."""
        return torch.optim.SGD(self.model.parameters(), lr=0.1)

    def prepare_data(self) -> None:
        """Get the text."""
        WikiText2(download=True)

    def train_dataloader(self) -> Any:
        """One block at a time."""
        return DataLoader(WikiText2())
