"""Iterable data whose position belongs to lanes, not to workers or ranks.

A `ShardedStream` is a fixed number of shards (files, ranges), each of which can be opened at a
stored state. The shards of an epoch are dealt to the K lanes (micro-batches) of a step by the same
permutation that orders map-style data; lane k feeds micro-batch k of every step. What a lane has
left, which shard it is in and where, is its state. It travels with each batch, as it is *after*
that batch, so what was read ahead never gets into a checkpoint. On resume each rank takes the
states of whichever lanes it has now: world size and number of workers may change.

Lanes end at different times. With ``drain`` whole unopened shards of the others are dealt again at
the next step boundary, by a rule that looks at the lanes' states alone and so has the same result
after a resume; the last steps have fewer lanes and are weighted by what they have. With ``min`` the
epoch ends with the first lane, with ``repeat`` never.

An `IterableDataset` with ``state_dict`` and ``load_state_dict`` is one stream for all lanes: every
rank reads all of it and keeps its own micro-batches, so its state is the same everywhere. Without
a state, reading begins anew after a restart; whether what was used is then passed over or used
again is what ``data["guarantee"]`` says (``approximate`` or ``relaxed``, see `guarantee`).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from rekindle.data import worker_shutdown
from rekindle.data.iterated import Iterated
from rekindle.data.loader import Batch, LoaderSource
from rekindle.data.sampling.order import ENDLESS, EpochOrder, Lane, Step
from rekindle.data.sampling.samplers import Ids
from rekindle.errors.requirement import RequirementError
from rekindle.randomness import seed_sample
from rekindle.ranks.distributed import World

Exhaustion = Literal["drain", "min", "repeat"]
State = dict[str, Any]
SHARD = 32
"""Bits for the number of a sample within its shard; ids of samples are ``shard << 32 | number``."""
_END = object()


class ShardedStream(IterableDataset[Any]):
    """Base class of iterable data that resumes exactly; give it to a DataLoader."""

    num_shards: int
    """Of every epoch; at least as many as a step has micro-batches."""
    exhaustion: Exhaustion = "drain"
    """What happens when lanes end at different times."""

    def open(self, shard: int, state: Any) -> Iterator[Any]:
        """Samples of one shard, from its start (`state` is None) or where `state` was taken.

        The iterator should have ``state_dict()``: plain values and tensors. Without one a resume
        opens the shard from its start and reads up to its position.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no open(self, shard, state). Define it and return an "
            f"iterator over the samples of the shard."
        )

    def __iter__(self) -> Iterator[Any]:
        """All shards one after the other, without a trainer."""
        for shard in range(self.num_shards):
            yield from self.open(shard, None)


def dealt(stream: ShardedStream, lanes: int, seed: int, epoch: int, turn: int = 0) -> list[State]:
    """The states in which the lanes begin an epoch (or a further `turn` of an endless one)."""
    order = EpochOrder(stream.num_shards, seed=seed, epoch=epoch + turn)
    shards = order(np.arange(stream.num_shards, dtype=np.int64)).tolist()
    return [
        {
            "shards": shards[lane::lanes],
            "shard": None,
            "read": 0,
            "at": None,
            "turn": turn,
            "done": [],
        }
        for lane in range(lanes)
    ]


def ended(state: Mapping[str, Any]) -> bool:
    """Whether a lane has nothing left."""
    return state["shard"] is None and not state["shards"]


def balanced(states: Sequence[State]) -> list[State] | None:
    """Deal unopened shards again if a lane has ended while others have some; None if not."""
    pool = [shard for state in states for shard in state["shards"]]
    if not pool or not any(map(ended, states)):
        return None
    # Those who have nothing come first.
    order = sorted(range(len(states)), key=lambda lane: (not ended(states[lane]), lane))
    shares: dict[int, list[int]] = {lane: [] for lane in order}
    for place, shard in enumerate(pool):
        shares[order[place % len(order)]].append(shard)
    return [{**state, "shards": shares[lane]} for lane, state in enumerate(states)]


def contents(states: Sequence[Mapping[str, Any] | None]) -> list[list[int]]:
    """What lanes have read in an epoch: ``[shard, samples of it from its start]``, sorted."""
    found: list[list[int]] = []
    for state in states:
        if state is None:
            continue
        if "count" in state:
            return [[0, int(state["count"])]]
        found += [list(each) for each in state["done"]]
        if state["shard"] is not None and state["read"]:
            found.append([state["shard"], state["read"]])
    return sorted(found)


class Item(NamedTuple):
    """What a reader hands over for one lane and step; `ids` is empty when there is nothing left."""

    ids: Ids
    data: Any
    state: State | None


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What readers need to know; goes to worker processes."""

    source: LoaderSource
    seed: int
    epoch: int
    lanes: int
    """Of a step, over all ranks."""
    own: tuple[int, ...]
    """Those of this rank."""
    micro: int
    start: int
    """Samples of the epoch before the first batch."""
    passes_over: bool
    """Whether a stream without a state is read up to there, and not begun anew."""


class _Lane:
    """Reads one lane of a sharded stream."""

    def __init__(self, plan: _Plan, lane: int, state: State) -> None:
        self._plan, self._lane = plan, lane
        self._stream: ShardedStream = plan.source.dataset
        self._shards = list(state["shards"])
        self._shard: int | None = state["shard"]
        self._read, self._turn = int(state["read"]), int(state["turn"])
        self._done = [list(each) for each in state["done"]]
        self._iterator: Iterator[Any] | None = None
        if self._shard is not None:
            at = state["at"]
            self._iterator = iter(self._stream.open(self._shard, at))
            if at is None:
                for number in range(self._read):
                    self._seed(number)
                    next(self._iterator)

    def _seed(self, number: int) -> int:
        assert self._shard is not None
        ident = self._shard << SHARD | number
        seed_sample(self._plan.seed, self._plan.epoch + self._turn, ident)
        return ident

    def item(self) -> Item:
        samples: list[Any] = []
        ids: list[int] = []
        while len(samples) < self._plan.micro and (self._iterator is not None or self._opened()):
            assert self._iterator is not None
            ident = self._seed(self._read)
            try:
                samples.append(next(self._iterator))
            except StopIteration:
                assert self._shard is not None
                self._done.append([self._shard, self._read])
                self._iterator = self._shard = None
                continue
            ids.append(ident)
            self._read += 1
        data = self._plan.source.collate(samples) if samples else None
        return Item(np.array(ids, dtype=np.int64), data, self._state())

    def _opened(self) -> bool:
        if not self._shards and self._stream.exhaustion == "repeat":
            self._turn += 1
            plan = self._plan
            states = dealt(self._stream, plan.lanes, plan.seed, plan.epoch, self._turn)
            self._shards = states[self._lane]["shards"]
        if not self._shards:
            return False
        self._shard, self._read = self._shards.pop(0), 0
        self._iterator = iter(self._stream.open(self._shard, None))
        return True

    def _state(self) -> State:
        take = getattr(self._iterator, "state_dict", None)
        return {
            "shards": list(self._shards),
            "shard": self._shard,
            "read": self._read if self._shard is not None else 0,
            # A state that the iterator goes on changing would be that of a later batch.
            "at": None if take is None else copy.deepcopy(take()),
            "turn": self._turn,
            "done": [list(each) for each in self._done],
        }


class _ShardedReader(IterableDataset[Item]):
    """Lanes of this rank in turn, for ever; a worker hosts whole lanes."""

    def __init__(self, plan: _Plan, states: Mapping[int, State]) -> None:
        self._plan, self._states = plan, dict(states)

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        own = self._plan.own
        mine = own if worker is None else own[worker.id :: worker.num_workers]
        lanes = [_Lane(self._plan, lane, self._states[lane]) for lane in mine]
        while True:
            for lane in lanes:
                yield lane.item()


class _WholeReader(IterableDataset[Item]):
    """One stream for all lanes: reads everything and hands over what is this rank's."""

    def __init__(self, plan: _Plan, state: Any) -> None:
        self._plan, self._state = plan, state

    def __iter__(self) -> Iterator[Item]:
        plan, dataset = self._plan, self._plan.source.dataset
        keeper = dataset if hasattr(dataset, "load_state_dict") else None
        if keeper is not None and self._state is not None:
            keeper.load_state_dict(self._state)
        if isinstance(dataset, Iterated):
            dataset.set_epoch(plan.epoch)
        samples = iter(dataset)
        if keeper is None and hasattr(samples, "load_state_dict"):
            keeper = samples
            if self._state is not None:
                keeper.load_state_dict(self._state)
        count = plan.start
        if keeper is None and plan.passes_over:
            for number in range(plan.start):
                seed_sample(plan.seed, plan.epoch, number)
                if next(samples, _END) is _END:
                    break
        while True:
            batches = []
            for _ in range(plan.lanes):
                first, batch = count, []
                for _ in range(plan.micro):
                    seed_sample(plan.seed, plan.epoch, count)
                    found = list(islice(samples, 1))
                    if not found:
                        break
                    batch += found
                    count += 1
                short = plan.source.drop_last and len(batch) < plan.micro
                batches.append((first, [] if short else batch))
            at = None if keeper is None else copy.deepcopy(keeper.state_dict())
            state = {"at": at, "count": count}
            for lane in plan.own:
                first, batch = batches[lane]
                ids = np.arange(first, first + len(batch), dtype=np.int64)
                yield Item(ids, plan.source.collate(batch) if batch else None, state)


class StreamStep(Step):
    """A step whose lanes have the sizes that were really there."""

    sizes: dict[int, int]
    batches: list[Batch]
    """Of this rank, in the order of its lanes."""
    after: dict[int, State | None]
    """States of this rank's lanes once the step is done."""

    @property
    def lanes(self) -> int:
        """How many lanes have something."""
        return len(self.sizes)

    def lanes_of(self, rank: int, world_size: int) -> list[Lane]:
        """The lanes that a rank runs; may be none."""
        found, start = [], self.start
        for lane, size in sorted(self.sizes.items()):
            if lane % world_size == rank:
                found.append(Lane(lane, start, start + size))
            start += size
        return found


class Streaming:
    """The stream of a run, as one rank reads it."""

    def __init__(
        self,
        source: LoaderSource,
        world: World,
        *,
        seed: int,
        lanes: int,
        micro: int,
        limit: int = ENDLESS,
        passes_over: bool = False,
    ) -> None:
        """`limit`: micro-batches after which an epoch ends anyway, at the end of the step.

        `passes_over`: what an epoch has used is read again after a restart, but not used again.

        Raises R13 for a stream that cannot fill so many lanes.
        """
        self.source, self.micro, self.limit = source, micro, limit
        self._passes_over = passes_over
        self._world, self._seed, self._lanes = world, seed, lanes
        self._sharded = isinstance(source.dataset, ShardedStream)
        self._own = tuple(range(world.rank, lanes, world.size))
        self._epoch = -1
        self._states: dict[int, State | None] = {}
        """Of this rank's lanes after the newest completed step."""
        self._saved: Mapping[str, Any] | None = None
        self._past: list[Any] = []
        """``[first epoch, how many, contents]`` of epochs that have ended."""
        self._fresh: State | None = None
        self._reading: Iterator[Item] | None = None
        self._front: dict[int, State | None] = {}
        self.dropped = 0
        """Samples that were read in this epoch and not used, because a lane had ended (``min``)."""
        if self._sharded:
            _check(source.dataset, lanes)
        elif stateful(source.dataset) and hasattr(source.dataset, "state_dict"):
            # Without workers the dataset's own state is left where an epoch has ended.
            self._fresh = {"at": copy.deepcopy(source.dataset.state_dict()), "count": 0}

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch, and of a process; collective."""
        if epoch != self._epoch:
            saved, self._saved = self._saved, None
            lanes: list[State | None] | None = None
            if saved is not None:
                self._past = list(saved["past"])
                if saved["epoch"] == epoch:
                    lanes = list(saved["lanes"])
                else:
                    self._close(int(saved["epoch"]), saved["lanes"])
            elif self._epoch >= 0:
                self._close(self._epoch, self._everywhere(self._states))
            self._epoch, self.dropped = epoch, 0
            if lanes is None:
                lanes = [self._fresh] * self._lanes
                if self._sharded:
                    lanes = list(dealt(self.source.dataset, self._lanes, self._seed, epoch))
            self._states = {lane: lanes[lane] for lane in self._own}
        self.rewind()

    def _close(self, epoch: int, lanes: Sequence[State | None]) -> None:
        """Note what an epoch that has ended consisted of."""
        found = contents(lanes)
        if self._past and self._past[-1][2] == found:
            self._past[-1] = [self._past[-1][0], self._past[-1][1] + 1, found]
        else:
            self._past.append([epoch, 1, found])

    def rewind(self, micro: int | None = None) -> None:
        """Forget what was read ahead of the newest completed step."""
        self.micro = micro or self.micro
        self._reading = None
        self._front = dict(self._states)
        self._balance()

    def _balance(self) -> None:
        """Deal again if a lane has ended; collective."""
        if not self._sharded or self.source.dataset.exhaustion != "drain":
            return
        states = self._everywhere(self._front)
        again = balanced([state for state in states if state is not None])
        if again is not None:
            self._front = {lane: again[lane] for lane in self._own}
            self._reading = None

    def _everywhere(self, own: Mapping[int, State | None]) -> list[State | None]:
        found: dict[int, State | None] = {}
        for part in self._world.gather(dict(own)):
            found |= part
        return [found[lane] for lane in range(self._lanes)]

    def read(self, start: int) -> StreamStep | None:
        """The next step, which begins at `start`; None when the epoch has ended. Collective."""
        if self._reading is None:
            self._reading = self._opened(start)
        items = [next(self._reading) for _ in self._own]
        own = {lane: item for lane, item in zip(self._own, items, strict=True)}
        left = {lane: self._left(item.state) for lane, item in own.items()}
        sizes: dict[int, int] = {}
        uneven, pool = False, 0
        for part in self._world.gather({n: (len(i.ids), *left[n]) for n, i in own.items()}):
            for lane, (size, done, unopened) in part.items():
                uneven, pool = uneven or done, pool + unopened
                if size:
                    sizes[lane] = size
        if not sizes:
            return None
        if self._sharded and self.source.dataset.exhaustion == "min" and len(sizes) < self._lanes:
            self.dropped += sum(sizes.values())
            return None
        step = StreamStep(start, start + sum(sizes.values()), self.micro)
        step.sizes = sizes
        step.batches = [Batch(item.ids, item.data) for item in items if len(item.ids)]
        step.after = {lane: item.state for lane, item in own.items()}
        self._front = dict(step.after)
        if uneven and pool:
            self._balance()
        return step

    def _left(self, state: State | None) -> tuple[bool, int]:
        if not self._sharded or state is None:
            return False, 0
        return ended(state), len(state["shards"])

    def completed(self, step: Step) -> None:
        """The step is done: its states are those to save."""
        if isinstance(step, StreamStep):
            self._states = step.after

    def _opened(self, start: int) -> Iterator[Item]:
        plan = _Plan(
            source=self.source,
            seed=self._seed,
            epoch=self._epoch,
            lanes=self._lanes,
            own=self._own,
            micro=self.micro,
            start=start,
            passes_over=self._passes_over,
        )
        options = dict(self.source.options)
        workers = options.pop("num_workers")
        reader: IterableDataset[Item]
        if self._sharded:
            reader = _ShardedReader(plan, {k: s for k, s in self._front.items() if s is not None})
            # A worker hosts whole lanes, and batches come from workers in turn.
            workers = max((n for n in range(1, workers + 1) if not len(self._own) % n), default=0)
        else:
            state = next(iter(self._front.values()), None)
            reader = _WholeReader(plan, None if state is None else state["at"])
            workers = min(workers, 1)
        if not workers or not self._own:
            return iter(reader)
        options["persistent_workers"] = False
        return iter(
            worker_shutdown.WorkerLoader(
                reader, batch_size=None, num_workers=workers, collate_fn=_same, **options
            )
        )

    def saved(self) -> dict[str, Any]:
        """States of all lanes after the newest completed step; collective."""
        if self._saved is not None:
            return dict(self._saved)
        if self._epoch < 0:
            return {"epoch": -1, "lanes": [None] * self._lanes, "past": []}
        return {
            "epoch": self._epoch,
            "lanes": self._everywhere(self._states),
            "past": [list(each) for each in self._past],
        }

    def account(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What `rekindle audit` needs to know of it."""
        return {
            "stateless": not stateful(self.source.dataset),
            "epochs": [*saved["past"], [max(0, saved["epoch"]), 1, contents(saved["lanes"])]],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; raises R12 when the lanes are others."""
        lanes = list(saved["lanes"])
        if len(lanes) != self._lanes:
            raise RequirementError(
                f"R12 the stream's position was saved for {len(lanes)} micro-batches per step, now "
                f"there are {self._lanes}. Keep global_batch_size / batch_size as it was, or "
                f"resume='never'."
            )
        self._saved = saved if saved["epoch"] >= 0 else None


def _check(stream: ShardedStream, lanes: int) -> None:
    name = type(stream).__name__
    if stream.exhaustion not in get_args(Exhaustion):
        raise ValueError(
            f"{name}.exhaustion={stream.exhaustion!r} is not known; allowed are "
            f"{', '.join(map(repr, get_args(Exhaustion)))}"
        )
    if stream.num_shards < lanes:
        raise RequirementError(
            f"R13 {name} has {stream.num_shards} shards for {lanes} micro-batches per step; "
            f"{lanes - stream.num_shards} would stay empty. Cut the data into more shards, or "
            f"lower global_batch_size."
        )


def stateful(dataset: Any) -> bool:
    """Whether a position in this iterable can be stored, as far as can be seen without reading."""
    if isinstance(dataset, ShardedStream):
        return True
    if hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict"):
        return True
    if isinstance(dataset, Iterated):
        # Iterating may be what can be done only once.
        return False
    # A generator has not begun to run when it is made.
    return hasattr(iter(dataset), "load_state_dict")


def why_loose(source: LoaderSource) -> str | None:
    """Why a resume cannot return to every position of a source; None where it can."""
    if source.loose is not None or not source.streamed or stateful(source.dataset):
        return source.loose
    return f"IterableDataset {type(source.dataset).__name__} has no state_dict"


def refuse_loose(why: str, *, items: int = 0, seconds: float = 0.0) -> RequirementError:
    """R12b, with what a resume would cost if an attempt before has shown it."""
    cost = "every item that was read before"
    if items:
        cost = f"{_short(items)} items (~{_duration(seconds)})"
    return RequirementError(
        f"R12b {why}; resume would replay {cost}. Implement ShardedStream, or set "
        f"Trainer(data={{'guarantee': 'approximate'}}) (reads them again and passes them over) or "
        f"'relaxed' (uses them again)."
    )


def _short(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _same(item: Any) -> Any:
    return item
