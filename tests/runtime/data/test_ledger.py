import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.data.ledger import Ledger, NoLedger, audit
from rekindle.data.sampling.order import Cursor

START = Cursor(epoch=0, sample=0, G=24, m=4, seed=5, N=103, length=103)


def trained(count, *, world_size=2, cursor=START, ledgers=None, tamper=None):
    """Ledgers and cursor after `count` steps on ranks that record as the loop does."""
    ledgers = ledgers or [Ledger() for _ in range(world_size)]
    for number in range(count):
        step = next(cursor.remaining())
        for rank, ledger in enumerate(ledgers):
            for lane in step.lanes_of(rank, len(ledgers)):
                ids = cursor.global_order.ids(cursor.epoch, lane.start, lane.stop)
                if tamper is not None:
                    ids = tamper(number, lane.index, ids)
                ledger.used(cursor.epoch, ids)
            ledger.covered(cursor.epoch, step.start, step.stop)
        cursor = cursor.after(step)
        if cursor.sample == cursor.length:
            cursor = cursor.next_epoch()
    return ledgers, cursor


def meta(ledgers, cursor):
    return {
        "cursor": cursor.to_json(),
        "ledger": ledgers[0].totals(ledger.own() for ledger in ledgers),
    }


@settings(max_examples=30)
@given(count=st.integers(0, 17), world_size=st.integers(1, 6))
def test_an_honest_run_is_exact(count, world_size):
    result = audit(meta(*trained(count, world_size=world_size)))
    assert result.exact
    assert result.samples_repeated == result.samples_missed == 0


@settings(max_examples=25)
@given(stops=st.lists(st.integers(0, 8), min_size=1, max_size=4), data=st.data())
def test_restarts_on_other_world_sizes_leave_the_same_ledger(stops, data):
    ledgers, cursor = trained(0)
    for count in stops:
        saved = meta(ledgers, cursor)
        ledgers = [Ledger() for _ in range(data.draw(st.integers(1, 6)))]
        for rank, ledger in enumerate(ledgers):
            ledger.restore(saved["ledger"], first=rank == 0)
        ledgers, cursor = trained(count, cursor=cursor, ledgers=ledgers)
    assert meta(ledgers, cursor) == meta(*trained(sum(stops), world_size=1))
    assert audit(meta(ledgers, cursor)).exact


def test_complete_epochs_are_one_span():
    ledgers, cursor = trained(12)
    assert meta(ledgers, cursor)["ledger"]["spans"] == [[0, 0, 103, 2], [2, 0, 48, 1]]


def test_a_step_done_twice_shows_as_repeated():
    ledgers, cursor = trained(3)
    for ledger in ledgers:
        ledger.covered(0, 24, 48)
    result = audit(meta(ledgers, cursor))
    assert result.samples_repeated == 24
    assert not result.exact


def test_a_skipped_step_shows_as_missed():
    ledgers, cursor = trained(2)
    skipped = Cursor.from_json({**cursor.to_json(), "sample": 72})
    result = audit(meta(*trained(1, cursor=skipped, ledgers=ledgers)))
    assert result.samples_missed == 24
    assert not result.digest_ok


def test_positions_beyond_the_cursor_count_as_repeated():
    ledgers, _ = trained(2)
    assert audit(meta(ledgers, START)).samples_repeated == 48


@pytest.mark.parametrize(
    "tamper",
    [
        lambda number, lane, ids: np.where(ids == ids[0], ids[-1], ids) if number == 1 else ids,
        lambda number, lane, ids: ids[:-1] if (number, lane) == (1, 0) else ids,
        lambda number, lane, ids: np.append(ids, ids[0]) if (number, lane) == (2, 3) else ids,
        lambda number, lane, ids: ids + 1,
    ],
    ids=["wrong id", "missing id", "repeated id", "shifted ids"],
)
def test_other_ids_than_those_of_the_order_break_the_digest(tamper):
    result = audit(meta(*trained(3, tamper=tamper)))
    assert not result.digest_ok
    assert not result.exact


def test_the_order_of_work_within_an_epoch_does_not_matter():
    one, other = Ledger(), Ledger()
    one.used(0, np.array([1, 2, 3]))
    other.used(0, np.array([3]))
    other.used(0, np.array([2, 1]))
    assert one.own() == other.own()


def test_the_same_id_in_another_epoch_is_another_sample():
    one, other = Ledger(), Ledger()
    one.used(0, np.array([1]))
    other.used(1, np.array([1]))
    assert one.own() != other.own()


def test_an_unreadable_ledger_is_named():
    with pytest.raises(ValueError, match="not a ledger"):
        audit({"cursor": START.to_json(), "ledger": {"spans": [[1, 2]], "samples": 0}})


def without(document, path):
    """A copy that lacks one key."""
    *way, last = path
    copied = copy.deepcopy(document)
    part = copied
    for key in way:
        part = part[key]
    del part[last]
    return copied


def paths(document, *above):
    for key, value in document.items() if isinstance(document, dict) else ():
        yield (*above, key)
        yield from paths(value, *above, key)


WHOLE = {
    **meta(*trained(3)),
    "history": [],
    "stream": {"epochs": [[0, 1, [[0, 4]]]], "stateless": False},
}
"""What the trainer writes, and what a stream adds."""


@pytest.mark.parametrize("order", ["shuffle", "stream"])
@pytest.mark.parametrize("path", list(paths(WHOLE)), ids=".".join)
def test_whatever_is_missing_is_said_and_never_a_key_error(path, order):
    whole = copy.deepcopy(WHOLE)
    whole["cursor"]["order"] = order
    said = ""
    try:
        audit(without(whole, path))
    except NoLedger as error:
        said = str(error)
    assert "Error" not in said


@pytest.mark.parametrize("found", [{}, {"cursor": None, "ledger": None}, {"ledger": {}}])
def test_a_checkpoint_of_another_writer_proves_nothing_and_says_so(found):
    with pytest.raises(NoLedger, match="only rekindle's Trainer keeps"):
        audit({"step": 9, "samples": 288, **found})
