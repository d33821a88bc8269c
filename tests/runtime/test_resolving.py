"""What `ckpt_path`, `resume` and `load_from_checkpoint` understand, and what they answer."""

import pickle
import shutil
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.callbacks import ModelCheckpoint
from rekindle.checkpoint import CommitRef, Store
from rekindle.interop.lightning_file import FileRefused

DATA = TensorDataset(torch.zeros(8, 1))


class Counting(rk.Module):
    """Its one weight is the number of steps it was trained for, times -1."""

    def __init__(self, start=0.0, note="none"):
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.tensor(start))

    def training_step(self, batch, batch_idx):
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        # Best at step 4, by a name that holds a slash.
        self.log("val/distance", (self.weight + 4).abs())

    def predict_step(self, batch, batch_idx):
        return self.weight.clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1.0)


def best_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ModelCheckpoint(
            monitor="val/distance", filename="{step}-{val/distance:.1f}", save_top_k=9
        )


def trainer(root, **flags):
    chosen = {"max_steps": 6, "callbacks": [best_kept()], "keep_latest": 9, "root": root}
    return rk.Trainer(**{**chosen, "enable_progress_bar": False, **flags})


def fit(root, model=None, ckpt_path=None, **flags):
    model, runner = model or Counting(), trainer(root, **flags)
    runner.fit(model, DataLoader(DATA, 4), DataLoader(DATA, 8), ckpt_path=ckpt_path)
    return runner, model


@pytest.fixture(scope="module")
def _finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "run"
    fit(root)
    return root


@pytest.fixture
def run(_finished, tmp_path):
    """A finished run of 6 steps with commits at 2, 4 and 6, of this test alone."""
    shutil.copytree(_finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("form", "step"),
    [
        ("{}", 6),
        ("file://{}", 6),
        ("{}/last.ckpt", 6),
        ("{}/commit/000000000002-00000001.json", 2),
        ("{}/tag/pin-mine.json", 2),
        ("{}/step=4-val/distance=0.0.ckpt", 4),
        ("{}/best of all/step=4-val/distance=0.0.ckpt", 4),
    ],
)
def test_every_form_of_a_path_finds_its_checkpoint(run, form, step):
    Store.open(str(run)).pin(CommitRef(step=2, fence=1), name="mine")
    path = form.format(run)
    assert float(Counting.load_from_checkpoint(path).weight.detach()) == -step
    (found,) = trainer(run).predict(Counting(), DataLoader(DATA, 8), ckpt_path=path)
    assert float(found) == -step


@pytest.mark.parametrize(("word", "step"), [("best", 4), ("last", 6)])
def test_words_are_resolved_against_the_run(run, word, step):
    (found,) = trainer(run).predict(Counting(), DataLoader(DATA, 8), ckpt_path=word)
    assert float(found) == -step


def test_a_relative_path_means_the_scripts_directory(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert float(Counting.load_from_checkpoint("./run/last.ckpt").weight.detach()) == -6


def test_a_model_is_rebuilt_with_its_arguments(tmp_path):
    fit(tmp_path / "run", Counting(10.0, note="mine"))
    found = Counting.load_from_checkpoint(tmp_path / "run")
    assert (dict(found.hparams), float(found.weight.detach())) == (
        {"start": 10.0, "note": "mine"},
        4.0,
    )
    assert Counting.from_checkpoint(tmp_path / "run", note="new").hparams.note == "new"


def test_test_without_a_model_means_the_best_checkpoint(run, capsys):
    runner, _ = fit(run)
    with pytest.warns(UserWarning, match="no test_step"):
        (values,) = runner.test(dataloaders=DataLoader(DATA, 8))
    assert values == {"val/distance": 0.0}
    assert f"weights of step 4 from {run}" in capsys.readouterr().out


def test_training_can_go_on_from_the_best_and_keeps_what_it_then_did(run):
    rewound, model = fit(run, ckpt_path="best", max_steps=5)
    assert (rewound.global_step, float(model.weight.detach())) == (5, -5)
    # The same call after a preemption must not begin at step 4 once more.
    seen = []

    class Witness(rk.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(trainer.global_step)

    again, model = fit(run, ckpt_path="best", max_steps=8, callbacks=[best_kept(), Witness()])
    assert (seen, again.global_step, float(model.weight.detach())) == ([5], 8, -8)


def test_training_can_begin_from_another_run_and_leaves_that_one_alone(run, tmp_path):
    before = sorted((run / "commit").iterdir())
    other, model = fit(tmp_path / "other", ckpt_path=run, max_steps=7)
    assert (other.global_step, float(model.weight.detach())) == (7, -7)
    assert sorted((run / "commit").iterdir()) == before
    newest = Store.open(str(tmp_path / "other"))
    assert newest.read(newest.commits()[0]).base is None
    assert fit(tmp_path / "other", ckpt_path=run, max_steps=9)[0].global_step == 9


def test_resume_may_be_a_uri(run, tmp_path):
    assert fit(tmp_path / "other", resume=f"file://{run}", max_steps=7)[0].global_step == 7


def test_hpc_is_the_newest_one_that_a_preemption_wrote(tmp_path, monkeypatch):
    class Stopping(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer._run.notice._flag = trainer.global_step == 3

    with pytest.raises(rk.Preempted):
        fit(tmp_path / "run", callbacks=[Stopping()])
    fit(tmp_path / "run")
    (found,) = trainer(tmp_path / "run").predict(Counting(), DataLoader(DATA, 8), ckpt_path="hpc")
    assert float(found) == -3


def test_hpc_without_a_preemption_says_what_to_use(run):
    with pytest.raises(FileNotFoundError, match="ckpt_path='hpc': no checkpoint in .* was written"):
        fit(run, ckpt_path="hpc")


def test_last_of_a_run_that_has_not_begun_is_its_start(tmp_path, capsys):
    path = tmp_path / "run" / "last.ckpt"
    runner, _ = fit(tmp_path / "run", ckpt_path=path)
    assert runner.global_step == 6
    assert "yet, training starts from step 0 (resume='must' makes this" in capsys.readouterr().out
    with pytest.raises(ValueError, match="resume='must', but there is no checkpoint"):
        fit(tmp_path / "new", ckpt_path=tmp_path / "new" / "last.ckpt", resume="must")


def test_the_jobs_root_replaces_the_scripts_in_paths_too(run, tmp_path, monkeypatch):
    monkeypatch.setenv("REKINDLE_CHECKPOINT_URI", f"file://{run}")
    path = tmp_path / "script" / "step=2-val/distance=2.0.ckpt"
    (found,) = trainer(tmp_path / "script").predict(Counting(), DataLoader(DATA, 8), ckpt_path=path)
    assert float(found) == -2


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint has run')",)


def test_a_file_of_another_tool_is_refused_unread(tmp_path):
    file = tmp_path / "epoch=3.ckpt"
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileRefused, match="which is code and not data; it was not run"):
        Counting.load_from_checkpoint(file)
    with pytest.raises(FileRefused, match="which is code and not data; it was not run"):
        fit(tmp_path / "run", ckpt_path=file)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (
            "{}/step=5-val/distance=0.0.ckpt",
            FileNotFoundError,
            "closest one is 'checkpoints/step=4-val/dist",
        ),
        ("/nowhere/at/all.ckpt", FileNotFoundError, "no folder above /nowhere/at/all.ckpt holds"),
        ("{}/tag/pin-mine.json", FileNotFoundError, "has no pin 'mine'; it has none"),
        ("s3:/bucket/run", ValueError, r"R25 root 's3:/bucket/run' is not a URL \(one slash\)"),
        ("/nowhere/at/all", FileNotFoundError, "there is no checkpoint in /nowhere/at/all"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_there(run, path, error, message):
    with pytest.raises(error, match=message):
        Counting.load_from_checkpoint(path.format(run))
    with pytest.raises(error, match=message.replace("there is", "no").replace("no no", "no")):
        trainer(run).predict(Counting(), DataLoader(DATA, 8), ckpt_path=path.format(run))


def test_without_a_metric_the_best_is_the_newest(run):
    newest, best = Counting(), Counting()
    for module, path in ((newest, "last"), (best, "best")):
        trainer(run, callbacks=[]).predict(module, DataLoader(DATA, 8), ckpt_path=path)
    assert all(
        torch.equal(a, b) for a, b in zip(newest.parameters(), best.parameters(), strict=True)
    )
    assert not torch.equal(next(best.parameters()), next(Counting().parameters()))


def test_what_excludes_a_ckpt_path_is_said(run):
    with pytest.raises(ValueError, match="ckpt_path='last' and resume='never' exclude each other"):
        fit(run, ckpt_path="last", resume="never")
    with pytest.raises(ValueError, match="cannot be resumed with enable_checkpointing=False"):
        fit(run, ckpt_path="last", enable_checkpointing=False, callbacks=[])


def test_a_named_checkpoint_that_is_damaged_is_no_other_one(run):
    (run / "commit" / "000000000002-00000001.json").write_bytes(b"rubbish")
    path = run / "commit" / "000000000002-00000001.json"
    with pytest.raises(SystemExit) as damaged:
        fit(run, ckpt_path=path)
    assert damaged.value.code == 70
