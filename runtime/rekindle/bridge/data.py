"""Lightning's training data with a moment between two steps, and a way back to the middle.

Lightning resumes in the middle of an epoch with the batch *counter* restored and the data begun
anew: the first batches of the epoch are trained on twice, the last never. And it has no hook
between the end of a step and the fetch of the next batch, the one moment in which model, counters
and generators belong together. `StepwiseLoader` is both: it stands in the place of Lightning's
loader of loaders; before it fetches, it lets the bridge save or stop, and after a restart it goes
forward to where the checkpoint was.

How it goes forward depends on the loader:

- one map-style `DataLoader` (nearly every script): the generators are put back to what they were
  when the epoch's order was drawn, and the batches that were used are skipped in the sampler.
  Nothing is read. With loader workers each sample's own draws are seeded from (seed, epoch, index),
  because a worker's generator cannot be brought back; without workers they come from the main
  process, whose generators are restored.
- loaders with ``state_dict`` and ``load_state_dict`` (torchdata): Lightning restores them itself.
- anything else (iterable datasets, several loaders at once): the batches that were used are read
  again and thrown away. Exact if reading draws from the generators in torch, NumPy and Python only,
  and each draw comes with the batch that it is for. Where Lightning reads one batch ahead, because
  it knows no length, that batch is read with the generators that it was read with.

Not exact: a sampler that goes on drawing from the global generators while it yields; what a
``collate_fn`` draws in loader workers; augmentation when the workers go from none to some or back;
and what an iterable dataset draws in persistent workers.
"""

import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rekindle import randomness
from rekindle.data.loader import WorkerStart

Position = dict[str, Any]
"""Where in the epoch a rank was: ``batches`` used, whether it had ``ended``, the generators when
its order was drawn (``began``), the script's ``own`` generator now, and the generators before the
fetch of a batch that was read ``ahead``."""


class Drawn(NamedTuple):
    """An index of the dataset together with the epoch in which it is read."""

    epoch: int
    index: Any


class _Around:
    """Stands in for another object, which answers for all attributes that are not defined here.

    Lightning looks for `sampler.set_epoch`, loaders for `batch_size`, scripts for what is theirs.
    """

    _inner: Any

    def __getattr__(self, name: str) -> Any:
        # Protocols are left out: `__getitems__` of a dataset, for one, would be asked for many
        # samples at once, past the seeding of each. And `_inner` is asked for by unpickling.
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class StepwiseSource(_Around):
    """Stands in for Lightning's data source and puts its loader into a `StepwiseLoader`, made by
    `make`."""

    def __init__(self, inner: Any, make: Callable[[Any], Any]) -> None:
        self._inner, self._make = inner, make

    def dataloader(self) -> Any:
        """The script's loader, within a `StepwiseLoader`."""
        return self._make(self._inner.dataloader())


class Indices(_Around):
    """A batch sampler that remembers how its pass began, and can begin one in the middle."""

    def __init__(self, inner: Any, epoch: Callable[[], int], *, tag: bool) -> None:
        self._inner, self._epoch, self._tag = inner, epoch, tag
        self.began: dict[str, Any] | None = None
        """All generators right before this pass drew its order; None before it did."""
        self.go_to: tuple[dict[str, Any], int] | None = None
        """Begin the next pass with these generators, behind that many batches."""

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epoch()
        if self.go_to is None:
            self.began = self._generators()
            batches = iter(self._inner)
        else:
            (self.began, used), self.go_to = self.go_to, None
            now = self._generators()
            self._restore(self.began)
            batches = iter(self._inner)
            # One more than was used, because a sampler may draw as late as at its first item.
            taken = list(islice(batches, used + 1))
            self._restore(now)
            batches = chain(taken[used:], batches)
        for batch in batches:
            yield [Drawn(epoch, index) for index in batch] if self._tag else batch

    @property
    def own(self) -> torch.Generator | None:
        """The generator that the script gave to its sampler."""
        found = getattr(getattr(self._inner, "sampler", None), "generator", None)
        return found if isinstance(found, torch.Generator) else None

    def _generators(self) -> dict[str, Any]:
        own = self.own
        return randomness.states() | ({} if own is None else {"sampler": own.get_state()})

    def _restore(self, states: dict[str, Any]) -> None:
        randomness.restore(states)
        if self.own is not None and "sampler" in states:
            self.own.set_state(states["sampler"])

    def __len__(self) -> int:
        return len(self._inner)


class Seeded(_Around, Dataset[Any]):
    """A dataset whose random draws belong to the sample, whichever worker reads it."""

    def __init__(self, inner: Any, seed: int) -> None:
        self._inner, self._seed = inner, seed

    def __getitem__(self, drawn: Drawn) -> Any:
        if isinstance(drawn.index, int):
            randomness.seed_sample(self._seed, drawn.epoch, drawn.index)
        return self._inner[drawn.index]

    def __len__(self) -> int:
        return len(self._inner)


class StepwiseLoader(CombinedLoader):
    """Lightning's training loader; `before` is called before every fetch."""

    def __init__(
        self, loaders: CombinedLoader, before: Callable[[], bool], epoch: Callable[[], int]
    ) -> None:
        """`before` tells whether training has begun; `epoch` which pass is read."""
        super().__init__(loaders.iterables, loaders._mode)
        self._before, self._epoch = before, epoch
        self._indices: Indices | None = None
        self._began: dict[str, Any] | None = None
        self._resume: Position | None = None
        self._generators: dict[str, Any] | None = None
        self._fetched = 0
        self._ahead: dict[str, Any] | None = None
        """Generators right before the newest fetch, where Lightning fetches one batch ahead."""
        self._reads_ahead = False

    def described(self) -> dict[str, Any]:
        """Which data it gives, as far as its loaders tell: for a comparison after a restart."""
        loaders = self.flattened
        return {
            "sizes": [_size(loader) for loader in loaders],
            "batch_sizes": [
                loader.batch_size if isinstance(loader, DataLoader) else None for loader in loaders
            ],
        }

    def position(self, batches: int, *, ended: bool) -> Position:
        """Where this rank is in its epoch, after so many batches; `ended` if it is over."""
        if self._resume is not None:
            return self._resume  # nothing was fetched since
        if self._indices is None:
            return {
                "batches": batches,
                "ended": ended,
                "began": self._began,
                "own": None,
                "ahead": self._ahead if self._fetched > batches else None,
            }
        own = self._indices.own
        return {
            "batches": batches,
            "ended": ended,
            "began": self._indices.began,
            "own": None if own is None else own.get_state(),
        }

    @property
    def generators(self) -> dict[str, Any]:
        """What the next fetch will draw from: of the checkpoint, as long as there was none."""
        return randomness.states() if self._generators is None else self._generators

    def ended_as(self, position: Position) -> None:
        """Leave the script's own generator as it was at the end of a fit that is not done again."""
        if (
            self._indices is not None
            and self._indices.own is not None
            and position["own"] is not None
        ):
            self._indices.own.set_state(position["own"])

    def go_to(self, position: Position, generators: dict[str, Any]) -> None:
        """Go on from there at the next fetch, with these generators."""
        self._resume, self._generators = position, generators

    def __iter__(self) -> "StepwiseLoader":
        self._settle()
        if self._iterator is not None and self._resume is not None:
            # Nothing was left of the epoch that the checkpoint was in; this is another one.
            self._resume = None
            self._bring_back()
        self._began = randomness.states()
        self._fetched = 0
        if self._indices is not None:
            self._indices.began = None
        super().__iter__()
        self._reads_ahead = sized_len(self) is None
        return self

    def __next__(self) -> Any:
        running = self._before()
        resumes = self._resume is not None
        if self._resume is not None:
            position, self._resume = self._resume, None
            if position["ended"]:
                self._next_epoch()
            else:
                self._forward(position)
                if self._reads_ahead and position.get("ahead") is None:
                    self._bring_back()  # nothing had been read ahead: this is the next fetch
        if running:
            self._bring_back()
        if self._reads_ahead:
            self._ahead = randomness.states()
        self._fetched += 1
        batch = super().__next__()
        if resumes and not running and self._generators is None:
            # Read ahead of the first step, which goes on from here whatever is drawn until then.
            self._generators = randomness.states()
        return batch

    def _next_epoch(self) -> None:
        """Begin the pass as it would have begun right after the one that the checkpoint ended."""
        self._bring_back()
        if not self._stateful():
            iter(self)

    def _bring_back(self) -> None:
        if self._generators is not None:
            randomness.restore(self._generators)
            self._generators = None

    def _forward(self, position: Position) -> None:
        began, batches = position["began"], position["batches"]
        if self._indices is not None:
            if began is not None:
                self._indices.go_to = (began, batches)
                super().__iter__()
            if self._indices.own is not None and position["own"] is not None:
                self._indices.own.set_state(position["own"])
            return
        if began is None or self._stateful():
            return
        randomness.restore(began)
        self._began = began
        super().__iter__()
        for _ in range(batches):
            super().__next__()
        self._fetched = batches
        if position.get("ahead") is not None:
            # The batch that Lightning had read already is read as it was then.
            randomness.restore(position["ahead"])

    def _stateful(self) -> bool:
        return all(
            hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
            for loader in self.flattened
        )

    def _settle(self) -> None:
        """Put `Indices` and `Seeded` into a plain loader; Lightning has rebuilt it by now."""
        for loader in self.flattened:
            if isinstance(loader, DataLoader) and loader.num_workers:
                _deafen(loader)
        if len(self.flattened) != 1 or self._indices is not None or self._stateful():
            return
        (loader,) = self.flattened
        if (
            not isinstance(loader, DataLoader)
            or isinstance(loader.dataset, IterableDataset)
            or loader.batch_sampler is None
        ):
            return
        if isinstance(loader.batch_sampler, Indices):
            # The script's own loader object, from a `fit` before this one.
            self._indices = loader.batch_sampler
            self._indices._epoch = self._epoch
            return
        workers = loader.num_workers > 0
        self._indices = Indices(loader.batch_sampler, self._epoch, tag=workers)
        # A DataLoader refuses these assignments because iterators may exist; none does yet.
        object.__setattr__(loader, "batch_sampler", self._indices)
        if workers:
            object.__setattr__(loader, "dataset", Seeded(loader.dataset, _seed()))


def _size(loader: Any) -> int | None:
    return sized_len(loader.dataset if isinstance(loader, DataLoader) else loader)


def _seed() -> int:
    """`seed_everything`'s seed, the same after a restart; 0 for a script that never called it."""
    told = os.environ.get("PL_GLOBAL_SEED", "")
    return int(told) if told.isdecimal() else 0


def _deafen(loader: "DataLoader[Any]") -> None:
    """Signals to the process group are for the ranks: a dead loader worker takes its rank along."""
    if not isinstance(loader.worker_init_fn, WorkerStart):
        loader.worker_init_fn = WorkerStart(loader.worker_init_fn)
