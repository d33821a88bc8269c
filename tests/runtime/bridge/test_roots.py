import pytest

from rekindle.checkpoint import Saver, Store


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"lightning": {}}, "belongs to a script of Lightning"),
        ({"model": {}}, "was imported from another tool"),
    ],
)
def test_the_trainer_refuses_a_root_that_is_not_its_own(fit, tmp_path, state, why):
    store = Store.open(f"file://{tmp_path}/run")
    fence = store.acquire(owner="test").fence
    saver = Saver(store, lease_fence=fence, base=None, rank=0, world_size=1)
    saver.save(4, state, meta={"step": 4}, wait=True)
    saver.close()
    error = fit()["error"]
    assert error.startswith(f"RequirementError: R11 checkpoint step 4 {why} ")
    assert "Give this run a root of its own" in error
