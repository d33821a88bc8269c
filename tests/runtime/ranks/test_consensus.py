"""Ranks agree on a step with few words; two of them in one process, joined by a list."""

import pytest
import torch

from rekindle.errors.outcome import Preempted
from rekindle.randomness import EARLY, LONGEST
from rekindle.ranks import consensus
from rekindle.ranks.consensus import INTERVAL, Consensus
from rekindle.ranks.distributed import World


class Flag:
    """In place of a notice."""

    given = False
    seconds_left = float("inf")


class Draws:
    """In place of `LaneSeeds`: what was noted, and when it was heard."""

    def __init__(self) -> None:
        self.word = 0
        self.heard: list[int] = []

    def agree(self, word: int) -> None:
        self.heard.append(word)


class Ranks:
    """Two ranks that take steps together."""

    def __init__(self, monkeypatch, *seconds: float) -> None:
        self.words: list[list[torch.Tensor]] = [[] for _ in seconds]
        self.now = [0.0 for _ in seconds]
        self.seconds = seconds
        self.asking = 0
        self.flags = [Flag() for _ in seconds]
        self.draws = [Draws() for _ in seconds]
        self.due = [False for _ in seconds]
        monkeypatch.setattr(consensus.dist, "all_reduce", self.post)
        monkeypatch.setattr(consensus.time, "perf_counter", lambda: self.now[self.asking])
        device = torch.device("cpu")
        self.all = [
            Consensus(
                World(rank=n, size=2, local_rank=0, device=device, control=object()),
                self.flags[n],
                lambda n=n: self.due[n],
                seeds=self.draws[n],
            )
            for n in range(len(seconds))
        ]

    def post(self, word, op, *, group, async_op):
        rank, number = self.asking, len(self.words[self.asking])
        self.words[rank].append(word.clone())

        class Work:
            def wait(work) -> None:
                sent = [self.words[other][number] for other in range(len(self.seconds))]
                word.copy_(torch.stack(sent).amax(0))

        return Work()

    def poll(self, step: int, *, acts: bool = True) -> list[bool]:
        found = []
        for rank, each in enumerate(self.all):
            self.asking = rank
            self.now[rank] += self.seconds[rank]
            found.append(each.poll(step, acts=acts))
        return found


@pytest.fixture
def ranks(monkeypatch):
    return lambda *seconds: Ranks(monkeypatch, *seconds)


@pytest.mark.parametrize("seconds", [(0.001, 0.001), (0.001, 0.3), (0.05, 0.05), (0.004, 0.009)])
@pytest.mark.parametrize("moment", [0, 5, EARLY - 1, EARLY, EARLY + 7, 200, 203])
def test_all_stop_before_the_same_step_soon_after_one_was_told(ranks, seconds, moment):
    both = ranks(*seconds)
    for step in range(moment):
        assert both.poll(step) == [False, False]
    both.flags[1].given = True
    for step in range(moment, moment + 2 * LONGEST + 1):
        stop = both.poll(step)
        assert stop in ([False, False], [True, True])
        if stop[0]:
            assert step - moment <= (1 if moment < EARLY - 1 else 2 * LONGEST)
            return
    pytest.fail("nobody has stopped")


@pytest.mark.parametrize(
    ("seconds", "pace"),
    [((0.001, 0.001), LONGEST), ((INTERVAL, INTERVAL), 1), ((0.005, 0.005), 4), ((0.01, 0.005), 4)],
)
def test_words_come_as_often_as_the_clock_wants_them(ranks, seconds, pace):
    both = ranks(*seconds)
    for step in range(EARLY):
        both.poll(step)
    assert len(both.words[0]) == EARLY
    for step in range(EARLY, EARLY + 20 * pace):
        both.poll(step)
    # The pace of the first words after that was agreed on before.
    assert 20 <= len(both.words[0]) - EARLY <= 20 + pace
    assert len(both.words[0]) == len(both.words[1])


def test_one_wish_to_save_is_one_save(ranks):
    both = ranks(0.001, 0.001)
    saved = []
    for step in range(EARLY + 100):
        if step == EARLY + 3:
            both.due[0] = True
        both.poll(step)
        assert both.all[0].save == both.all[1].save
        if both.all[0].save:
            saved.append(step)
            both.due[0] = False
    assert len(saved) == 1


@pytest.mark.parametrize("odd", [0, 1])
def test_a_wish_that_is_heard_where_nobody_acts_is_kept_for_who_does(ranks, odd):
    both = ranks(0.001, 0.001)
    saved = []
    for poll in range(2 * EARLY, 2 * EARLY + 200):
        # Words come every 16 polls: always in the same half of the polls.
        acts = poll % 2 == odd
        both.due[0] = poll > 2 * EARLY + 20 and not saved
        both.poll(poll, acts=acts)
        if acts and both.all[0].save:
            assert both.all[1].save
            saved.append(poll)
    assert len(saved) == 1


@pytest.mark.parametrize("moment", [*range(EARLY - 3, EARLY + 40)])
def test_what_was_drawn_is_heard_by_all_before_the_step_that_it_names(ranks, moment):
    both = ranks(0.001, 0.002)
    wanted = moment + (1 if moment < EARLY else 2 * LONGEST)
    for step in range(wanted + 1):
        if step == moment:
            both.draws[0].word = 77
        both.poll(step)
        assert both.draws[0].heard == both.draws[1].heard
    assert 77 in both.draws[1].heard


def test_a_late_find_of_a_single_process_is_kept_through_a_validation():
    finds = iter([3])
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), control=None)
    single = Consensus(alone, Flag(), lambda: False, late=lambda: next(finds, None))
    single.poll(5, acts=False)
    single.poll(5)
    assert (single.back, single.bad) == (True, 3)


def test_a_late_find_is_told_once(ranks):
    both = ranks(0.001, 0.001)
    both.all[1]._late = lambda: 3
    found = []
    for step in range(EARLY, EARLY + 40):
        both.poll(step)
        if both.all[0].back:
            assert both.all[1].back
            found.append(step)
            for each in both.all:
                each.settle()
                each.bad, each.back, each._late = None, False, lambda: None
    assert len(found) == 1


class Pods:
    """A world whose ranks have these views of a notice: whether it was given, and seconds left."""

    def __init__(self, *views):
        self.views = list(views)

    def gather(self, _own):
        return self.views


@pytest.mark.parametrize(
    ("views", "seconds"),
    [
        ([(True, 20.0), (False, 5.0)], 5.0),
        ([(False, float("inf")), (True, 7.0), (True, 90.0)], 7.0),
        ([(True, float("inf")), (False, float("inf"))], None),
    ],
)
def test_the_pod_that_has_the_least_time_decides_by_when_all_have_saved(
    monkeypatch, views, seconds
):
    monkeypatch.setattr(consensus.time, "monotonic", lambda: 100.0)
    asked, said = [], []
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), control=None)
    with pytest.raises(Preempted) as caught:
        consensus.obey(
            Consensus(alone, Flag(), lambda: False),
            Flag(),
            Pods(*views),
            said.append,
            step=9,
            save=asked.append,
        )
    assert caught.value.saved
    # A second of it is for the way out.
    assert asked == [None if seconds is None else 100.0 + seconds - 1.0]
    who = [str(rank) for rank, (given, _) in enumerate(views) if given]
    assert f"notice on rank {', '.join(who)};" in said[0]
