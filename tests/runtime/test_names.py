"""Scripts written for Lightning find everything under its name."""

import subprocess
import sys

import pytest

import rekindle as L


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            "callbacks",
            ["ModelCheckpoint", "EarlyStopping", "LearningRateMonitor", "RichProgressBar"],
        ),
        ("loggers", ["WandbLogger", "MLFlowLogger", "CometLogger", "TensorBoardLogger"]),
        ("strategies", ["FSDPStrategy", "DeepSpeedStrategy", "DDPStrategy"]),
        ("profilers", ["AdvancedProfiler", "SimpleProfiler", "PyTorchProfiler"]),
    ],
)
def test_the_packages_of_lightning_are_ours(package, names):
    from importlib import import_module

    alias, own = import_module(f"rekindle.pytorch.{package}"), import_module(f"rekindle.{package}")
    assert own is getattr(L, package)
    assert alias is getattr(L.pytorch, package)
    assert all(getattr(alias, name) is getattr(own, name) for name in [*names, *own.__all__])


def test_the_main_names_are_there_under_both_spellings():
    import rekindle.pytorch as pl

    assert L.LightningModule is L.Module is pl.LightningModule
    assert L.LightningDataModule is L.DataModule is pl.LightningDataModule
    assert (pl.Trainer, pl.Callback) == (L.Trainer, L.Callback)
    assert "Trainer" in dir(pl)
    assert pl.Every is L.Every
    with pytest.raises(AttributeError, match="no attribute 'LightningCli'"):
        _ = pl.LightningCli


@pytest.mark.processes
@pytest.mark.parametrize(
    ("entry", "persistent"), [("fit", True), ("fit", False), ("predict", True)]
)
def test_a_script_whose_error_keeps_loader_workers_ends_all_the_same(entry, persistent, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("PERSISTENT", repr(persistent)).replace("ENTRY", entry))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "the end"), done.stderr
    assert "killed by signal" not in done.stderr


SCRIPT = """
import sys, torch
import rekindle as rk
from torch.utils.data import DataLoader

class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise ValueError("kept")
        return self.w * batch.sum()

    validation_step = test_step = predict_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

trainer = rk.Trainer(max_epochs=2, root=sys.argv[1], enable_progress_bar=False)
loader = DataLoader(torch.ones(8, 1), 2, num_workers=1, persistent_workers=PERSISTENT)
try:
    trainer.ENTRY(Net(), loader)
    raise SystemExit("no error")
except ValueError as error:
    kept = error
held = iter(DataLoader(torch.ones(8, 1), 2, num_workers=1))
assert len(torch.multiprocessing.active_children()) == 1, "workers of a run that is over"
print("the end")
"""
