"""Which checkpoint a run begins from, and what it says and marks on the way to it."""

import pytest
import torch

from rekindle import Trainer
from rekindle.checkpoint import Saver, Store
from rekindle.checkpoint.resolving import locate
from rekindle.persistence.lease import SharedLease
from rekindle.persistence.restore import Candidates, Found
from rekindle.ranks.distributed import World

WORLD = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), control=None)


def saved(root, *steps, origin=None):
    """A run with these checkpoints; its store."""
    store = Store.open(f"file://{root}")
    fence = store.acquire(owner="test").fence
    saver = Saver(store, lease_fence=fence, base=None, rank=0, world_size=1)
    for step in steps:
        saver.save(step, {"w": torch.ones(3)}, meta={"started_from": origin}, wait=True)
    saver.close()
    return store


def damage(store, step):
    ref = next(ref for ref in store.commits() if ref.step == step)
    path = store.uri.removeprefix("file://") + f"/commit/{ref.step:012d}-{ref.fence:08d}.json"
    with open(path, "wb") as file:
        file.write(b"rubbish")


@pytest.fixture
def candidates(tmp_path):
    flags = Trainer(root=f"file://{tmp_path}/run", enable_progress_bar=False).flags
    lease = SharedLease(WORLD, flags)
    yield Candidates(world=WORLD, lease=lease)
    lease.release()


def named(candidates, text, root=None):
    target = locate(text, root=root or candidates.lease.uri)
    return candidates.named("auto", target, None)


def test_a_run_without_checkpoints_begins_from_scratch_if_it_may(candidates):
    candidates.lease.take()
    assert candidates.newest("auto") == Found()
    with pytest.raises(ValueError, match="resume='must', but there is no checkpoint in"):
        candidates.newest("must")


def test_the_newest_good_one_is_found_and_what_that_costs_is_said_and_marked(candidates, tmp_path):
    store = saved(tmp_path / "run", 1, 2, 5)
    damage(store, 5)
    candidates.lease.take()
    found = candidates.newest("auto")
    assert found.restored.ref.step == 2
    assert found.source.startswith(f"file://{tmp_path}/run/commit/")
    (line,) = found.skipped
    assert line.startswith("R16 ")
    assert line.endswith("Falling back to step 2 (3 steps lost).")
    assert [ref.step for ref in store.commits()] == [2, 1]
    assert candidates.newest("never") == Found()


def test_of_steps_that_are_taken_back_the_newest_before_is_loaded(candidates, tmp_path):
    saved(tmp_path / "run", 1, 2, 5)
    candidates.lease.take()
    assert candidates.before(4).restored.ref.step == 2
    assert candidates.before(0).restored is None


def test_a_checkpoint_of_another_run_is_foreign_and_never_marked(candidates, tmp_path):
    other = saved(tmp_path / "other", 3)
    candidates.lease.take()
    found = named(candidates, f"{tmp_path}/other")
    assert (found.restored.ref.step, found.foreign) == (3, True)
    assert found.origin == f"{tmp_path}/other"
    damage(other, 3)
    with pytest.raises(Exception, match=r"R16 what ckpt_path=.*/other' means is damaged or gone"):
        named(candidates, f"{tmp_path}/other")
    assert [ref.step for ref in other.commits()] == [3]


def test_a_run_that_was_begun_so_goes_on_from_its_own(candidates, tmp_path):
    text = f"{tmp_path}/other"
    saved(tmp_path / "other", 3)
    saved(tmp_path / "run", 7, origin=text)
    candidates.lease.take()
    found = named(candidates, text)
    assert (found.restored.ref.step, found.foreign, found.origin) == (7, False, text)


def test_attempts_have_numbers_of_their_own(candidates, tmp_path):
    saved(tmp_path / "run", 1)
    candidates.lease.take()
    fence = candidates.lease.fence
    assert candidates.newest("auto").attempt(fence) == fence > 0
    assert Found().attempt(fence) == 0
    candidates.lease.renew()
    assert candidates.lease.fence == fence + 1
