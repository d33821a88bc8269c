from datetime import timedelta

import pytest
import torch

from rekindle import Callback, Every, Store
from rekindle.callbacks import ModelCheckpoint
from rekindle.checkpoint.retention import Best, Retention
from rekindle.persistence.policy import retention

pytestmark = pytest.mark.processes


def commits(tmp_path):
    store = Store.open(str(tmp_path / "run"))
    return {ref.step: store.read(ref).meta for ref in store.commits()}


class Scores(Callback):
    """Puts scores of our choice in place of what a validation measures."""

    def __init__(self, *scores):
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/f1", self.scores[trainer.current_epoch])


def best(**arguments):
    return ModelCheckpoint(
        monitor="val/f1", mode="max", filename="{epoch}-{val/f1:.3f}", **arguments
    )


def test_the_best_checkpoints_stay_under_readable_names(fit, tmp_path):
    callback = best(save_top_k=2)
    fit(Scores(0.9, 0.2, 0.8, 0.3), callback, max_epochs=4, keep_latest=1)
    found = commits(tmp_path)
    assert sorted(found) == [5, 15, 20]
    about = {"monitor": "val/f1", "mode": "max", "score": pytest.approx(0.9)}
    assert found[5]["aliases"] == {"checkpoints/epoch=0-val/f1=0.900": about}
    assert callback.best_model_path == f"{tmp_path}/run/checkpoints/epoch=0-val/f1=0.900.ckpt"
    assert float(callback.best_model_score) == pytest.approx(0.9)
    assert list(callback.best_k_models) == [
        f"{tmp_path}/run/checkpoints/epoch={e}-val/f1={s}.ckpt"
        for e, s in ((0, "0.900"), (2, "0.800"))
    ]


def test_the_best_checkpoints_stay_after_three_preemptions(fit, tmp_path):
    scores = Scores(0.1, 0.9, 0.2, 0.7, 0.3, 0.4)
    for stop in (3, 12, 23, None):
        callback = best(save_top_k=3)
        fit(scores, callback, max_epochs=6, keep_latest=1, stop=stop)
    # 23 is where the last attempt began.
    assert sorted(commits(tmp_path)) == [10, 20, 23, 30]
    assert [float(score) for score in callback.best_k_models.values()] == pytest.approx(
        [0.9, 0.7, 0.4]
    )
    assert callback.best_model_path.endswith("epoch=1-val/f1=0.900.ckpt")


def test_a_checkpoint_between_validations_does_not_count_with_an_old_score(fit, tmp_path):
    steps = ModelCheckpoint(every_n_train_steps=1)
    fit(Scores(0.1, 0.9, 0.2), best(save_top_k=2), steps, keep_latest=1)
    assert sorted(commits(tmp_path)) == [10, 15]


def test_names_follow_the_template(fit, tmp_path):
    plain = ModelCheckpoint(every_n_train_steps=4, auto_insert_metric_name=False)
    fit(plain, keep_latest=9)
    named = {step: list(meta["aliases"]) for step, meta in commits(tmp_path).items()}
    assert named == {
        4: ["checkpoints/0-4"],
        8: ["checkpoints/1-8"],
        12: ["checkpoints/2-12"],
        15: [],
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"monitor": "x"}, Retention(latest=3, best=(Best(metric="x", mode="min"),))),
        ({"save_top_k": -1}, Retention(latest=3, every=1)),
        ({"monitor": "x", "save_top_k": 0}, Retention(latest=3)),
    ],
)
def test_it_becomes_a_rule_of_the_store(arguments, expected):
    from rekindle import Trainer

    assert retention(Trainer(callbacks=[ModelCheckpoint(**arguments)]).flags) == expected


@pytest.mark.parametrize("every", [None, Every(steps=4), Every(seconds=99)])
def test_a_clock_saves_too(fit, tmp_path, every):
    callback = ModelCheckpoint(train_time_interval=timedelta(microseconds=1))
    trainer = fit(callback, keep_latest=9, checkpoint_every=every)
    assert len(commits(tmp_path)) > 2
    assert trainer._run.session.cadence.every.seconds == 1e-6


def test_a_pace_that_is_measured_wins_over_the_clock(fit, capsys):
    callback = ModelCheckpoint(train_time_interval=timedelta(microseconds=1))
    fit(callback, checkpoint_every="auto")
    assert "checkpoint_every='auto' decides" in capsys.readouterr().out


def test_a_folder_within_the_root_is_part_of_the_name(fit, tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path / "run" / "best")
    fit(callback, max_epochs=1)
    assert list(commits(tmp_path)[5]["aliases"]) == ["best/epoch=0-step=5"]
    assert callback.best_model_path == f"{tmp_path}/run/best/epoch=0-step=5.ckpt"
    assert (tmp_path / "run" / "best" / "epoch=0-step=5.ckpt").is_file()


def test_a_metric_that_nobody_logs_is_named(fit):
    with pytest.raises(ValueError, match=r"monitor='val/f1'\): no such metric was logged; known"):
        fit(ModelCheckpoint(monitor="val/f1"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "most"}, "allowed are 'min' and 'max'"),
        ({"save_top_k": -2}, "need -1"),
        ({"save_top_k": 3}, "needs monitor="),
        ({"every_n_epochs": 1, "every_n_train_steps": 1}, "exclude each other"),
        ({"every_n_epochs": 0.5}, "every_n_epochs=0.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelCheckpoint(**arguments)


@pytest.mark.parametrize("stop", [2, 5, 7, 12])
def test_files_of_an_interrupted_run_are_those_of_a_plain_one(fit, tmp_path, stop):
    def callbacks(folder):
        last = ModelCheckpoint(folder, filename="{epoch}", save_last=True)
        return [
            last,
            ModelCheckpoint(folder, monitor="val/loss", save_top_k=2, filename="{epoch}"),
            ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1),
        ]

    plain = callbacks(tmp_path / "plain")
    fit(*plain, root="one")
    fit(*callbacks(tmp_path / "cut"), root="two", stop=stop)
    cut = callbacks(tmp_path / "cut")
    fit(*cut, root="two")
    names = [sorted(p.name for p in (tmp_path / d).glob("*.ckpt")) for d in ("plain", "cut")]
    assert names[0] == names[1]
    assert "epoch=2-v1.ckpt" in names[0]
    for name in names[0]:
        one, two = (
            torch.load(tmp_path / d / name, weights_only=True)["state_dict"]
            for d in ("plain", "cut")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)
    for one, two in zip(plain, cut, strict=True):
        assert one.best_model_path.replace("plain", "cut") == two.best_model_path
        assert one.last_model_path.replace("plain", "cut") == two.last_model_path


def test_files_that_were_not_written_are_made_anew(fit, tmp_path):
    folder = tmp_path / "files"

    def callback():
        return ModelCheckpoint(folder, save_last="link", save_top_k=-1, filename="{epoch}")

    # Two epochs are done; their files are lost, and one that was to go has stayed.
    fit(callback(), stop=11)
    before = (folder / "epoch=0.ckpt").read_bytes()
    for path in folder.glob("*.ckpt"):
        path.unlink()
    fit(callback())
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    assert names == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert len((folder / "epoch=0.ckpt").read_bytes()) == len(before)
    assert (folder / "last.ckpt").readlink().name == "epoch=2.ckpt"


def test_a_file_that_cannot_be_written_costs_the_run_nothing(fit, tmp_path, capfd):
    (tmp_path / "files").write_text("no folder")
    trainer = fit(ModelCheckpoint(tmp_path / "files"), max_epochs=1)
    assert trainer.global_step == 5
    assert "epoch=0-step=5.ckpt: not written: " in capfd.readouterr().err


def test_training_goes_on_from_a_file_exactly(fit, tmp_path, same):
    callback = ModelCheckpoint(tmp_path / "files", every_n_train_steps=7)
    plain = fit(callback, root="one", max_epochs=2)
    found = fit(root="two", max_epochs=2, start=callback.best_model_path)
    assert found.global_step == 10
    assert same(plain, found)


def test_its_folder_is_the_root_when_the_trainer_names_none(tmp_path):
    from rekindle import Trainer

    assert Trainer(callbacks=ModelCheckpoint(dirpath=tmp_path / "x")).flags.root == f"{tmp_path}/x"
