"""A second process validates what is committed while training goes on."""

import runpy
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk

PROGRAM = Path(__file__).parent / "program" / "kills.py"


@pytest.fixture
def training(_forkserver, tmp_path):
    """A process that trains in `run`, and waits in step 20 until there is a file `go`."""
    task = {"case": "mid-validation", "root": str(tmp_path / "run"), "every": 13}
    process = _forkserver.Process(
        target=runpy.run_path,
        args=(str(PROGRAM),),
        kwargs={
            "init_globals": {"TASKS": [{**task, "wait": (20, str(tmp_path / "go"))}]},
            "run_name": "__main__",
        },
    )
    process.start()
    yield process
    process.kill()
    process.join()
    process.close()


@pytest.mark.processes
def test_checkpoints_are_validated_beside_training_with_the_same_result(training, tmp_path):
    root = tmp_path / "run"
    here = runpy.run_path(str(PROGRAM))
    data = DataLoader(TensorDataset(here["Noisy"](20).x), 5)
    trainer = rk.Trainer(root=tmp_path / "elsewhere", enable_progress_bar=False)
    seen = {}
    for uri in rk.follow(root, poll_seconds=0.01):
        assert len(rk.Store.open(str(root)).pins()) == 1
        (found,) = trainer.validate(here["Net"](norm=True), data, ckpt_path=uri)
        if not seen:
            assert training.is_alive()
            (tmp_path / "go").touch()
        seen[int(uri.rpartition("/")[2][:12])] = found["val/loss"]
    training.join(60)
    assert training.exitcode == 0
    store = rk.Store.open(str(root))
    own = {ref.step: store.read(ref).meta["metrics"]["val/loss"] for ref in store.commits()}
    assert seen == pytest.approx({step: own[step] for step in seen}, rel=1e-6)
    # Training may be faster than validation, which then leaves out one in the middle.
    assert {13, 39} <= set(seen) <= {13, 26, 39}
    assert store.pins() == {}
