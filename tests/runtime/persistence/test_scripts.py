"""Scripts with several fits: interrupted wherever it may be, they come to what a plain run does."""

import copy

import pytest
import torch

import rekindle as rk
from rekindle.checkpoint import Store
from rekindle.persistence import run_identity

pytestmark = pytest.mark.one_script


class Killed(BaseException):
    """Stands for SIGKILL: nobody handles it."""


class Killer(rk.Callback):
    """Ends the process after so many steps of all fits together."""

    def __init__(self, after):
        self.left = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left -= 1
        if self.left == 0:
            raise Killed


class Net(rk.Module):
    def __init__(self, lr=0.1):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.lr = lr

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch) ** 2).mean() + torch.rand(()) * 0.0
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def loader(part=slice(None), shuffle=True):
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(12, 3, generator=generator)[part]
    return torch.utils.data.DataLoader(data, batch_size=2, shuffle=shuffle)


class World:
    """Runs scripts as processes would: each start forgets what the one before has counted."""

    def __init__(self, folder):
        self.folder, self.root = folder, str(folder / "run")
        self.killer = None

    def trainer(self, root=None, **flags):
        given = {"max_epochs": 2, "checkpoint_every": rk.Every(steps=1), **flags}
        callbacks = [*given.pop("callbacks", []), *([self.killer] if self.killer else [])]
        return rk.Trainer(
            root=root or self.root, callbacks=callbacks, enable_progress_bar=False, **given
        )

    def start(self, script, kill_after=None):
        run_identity.forget()
        torch.manual_seed(5)
        self.killer = Killer(kill_after) if kill_after else None
        try:
            result = script(self)
        except Killed:
            return None
        run_identity._end(run_identity.os.getpid())
        return result


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def sweep(world):
    found = {}
    for lr in (0.1, 0.01, 0.001):
        model = Net(lr)
        trainer = world.trainer()
        trainer.fit(model, loader())
        found[lr] = weights(model), float(trainer.callback_metrics["loss_epoch"])
    return found


def folds(world):
    found = []
    first = copy.deepcopy(Net().state_dict())
    for fold in range(3):
        model = Net()
        model.load_state_dict(first)
        keep = [number for number in range(12) if number % 3 != fold]
        world.trainer().fit(model, loader(keep))
        found.append((weights(model), float(model.layer(torch.ones(3)).detach())))
    return found


def two_stages(world):
    model = Net()
    world.trainer(max_epochs=1).fit(model, loader())
    model.layer.bias.requires_grad_(False)
    model.lr = 0.5
    second = world.trainer(max_epochs=2)
    second.fit(model, loader())
    return weights(model), second.global_step


def more_of_the_same(world):
    """One trainer, and the second fit goes on where the first has ended."""
    model = Net()
    world.trainer(max_epochs=1).fit(model, loader())
    model = Net()
    trainer = world.trainer(max_epochs=3)
    trainer.fit(model, loader(), ckpt_path="last")
    return weights(model), trainer.global_step


SCRIPTS = [sweep, folds, two_stages, more_of_the_same]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_script_of_several_fits_is_exact_over_restarts(script, world, tmp_path, capsys):
    plain = World(tmp_path / "plain").start(script)
    steps = 0
    # Killed after so many steps, again and again, until it gets through.
    for steps in range(1, 60):  # noqa: B007
        found = world.start(script, kill_after=5)
        if found is not None:
            break
    assert steps > 2
    assert found == plain
    assert "is the result of this fit" in capsys.readouterr().out


@pytest.mark.parametrize("after", range(1, 37, 5))
def test_a_sweep_may_be_killed_after_any_step(after, world, tmp_path):
    plain = World(tmp_path / "plain").start(sweep)
    assert world.start(sweep, kill_after=after) is None
    assert world.start(sweep) == plain


def test_a_script_that_is_started_again_begins_anew(world, capsys):
    first = world.start(sweep)
    for number in (1, 2, 3):
        assert Store.open(run_identity.place_of(world.root, number)).commits()
    capsys.readouterr()
    assert world.start(sweep) == first
    said = capsys.readouterr().out
    assert f"{world.root} holds the end of a run, step 12: a new run begins" in said
    assert f"{world.root}/fits/2 holds the end of a run" in said
    assert "is the result" not in said


def test_one_that_is_killed_after_a_new_start_does_not_take_old_results(world):
    def script(world, lr=0.1):
        found = []
        for _ in range(2):
            model = Net()
            model.lr = lr
            world.trainer().fit(model, loader())
            found.append(weights(model))
        return found

    first = world.start(script)
    # The learning rate is in no hyperparameter, so only the start tells the two apart.
    changed = world.start(lambda world: script(world, 0.01), kill_after=3)
    assert changed is None
    again = world.start(lambda world: script(world, 0.01))
    assert all(one != other for one, other in zip(first, again, strict=True))


def test_a_changed_hyperparameter_of_an_interrupted_fit_is_refused_by_name(world):
    assert world.start(lambda world: world.trainer().fit(Net(0.1), loader()), 3) is None
    with pytest.raises(rk.RequirementError, match="R11 .* lr was 0.1 and is 0.2"):
        world.start(lambda world: world.trainer().fit(Net(0.2), loader()))
    trainer = None

    def must(world):
        nonlocal trainer
        trainer = world.trainer(resume="must")
        trainer.fit(Net(0.2), loader())

    world.start(must)
    assert trainer.global_step == 12


def test_a_changed_sweep_trains_what_has_changed_and_all_after_it(world, capsys):
    def script(world, rates):
        for rate in rates:
            world.trainer().fit(Net(rate), loader())

    assert world.start(lambda world: script(world, [0.1, 0.2, 0.3]), kill_after=30) is None
    capsys.readouterr()
    world.start(lambda world: script(world, [0.1, 0.5, 0.3]))
    said = capsys.readouterr().out
    assert said.count("is the result of this fit") == 1
    assert "of another fit (lr was 0.2 and is 0.5)" in said


def test_the_end_of_an_earlier_run_and_its_best_stay(world):
    class Scored(Net):
        score = 1.0

        def training_step(self, batch, batch_idx):
            self.log("score", self.score, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    def script(world, first):
        model = Scored()
        model.score = 1.0 if first else 2.0
        best = rk.callbacks.ModelCheckpoint(monitor="score", mode="min")
        trainer = world.trainer(callbacks=[best], keep_latest=1, max_epochs=4)
        trainer.fit(model, loader())
        return best.best_model_path

    world.start(lambda world: script(world, True))
    world.start(lambda world: script(world, False))
    store = Store.open(world.root)
    ends = [ref for ref in store.listed() if store.read(ref).meta["finished"]]
    assert len(ends) == 2
    scores = {store.read(ref).meta["metrics"].get("score") for ref in store.listed()}
    assert scores == {1.0, 2.0}

    def test(world):
        model = Net()
        trainer = world.trainer(callbacks=[rk.callbacks.ModelCheckpoint(monitor="score")])
        model.test_step = lambda batch, batch_idx: None
        trainer.test(model, loader(shuffle=False), ckpt_path="best")
        return weights(model)

    newest = store.read(store.commits()[0])
    best = world.start(test)
    own = {newest.meta["run"]["script"]}
    assert {c.meta["run"]["script"] for c in map(store.read, store.commits()[:1])} == own
    assert best is not None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_that_was_stopped_early_goes_on_with_more_patience(elsewhere, world, tmp_path):
    class Flat(Net):
        def training_step(self, batch, batch_idx):
            self.log("flat", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    def script(world, patience, ckpt_path=None, root=None):
        stopping = rk.callbacks.EarlyStopping(monitor="flat", patience=patience)
        trainer = world.trainer(root=root, max_epochs=20, callbacks=[stopping])
        trainer.fit(Flat(), loader(), ckpt_path=ckpt_path)
        return trainer.current_epoch

    ended = world.start(lambda world: script(world, 2))
    root = str(tmp_path / "other") if elsewhere else None
    path = world.root if elsewhere else "last"
    later = world.start(lambda world: script(world, 5, path, root))
    assert ended < later < 20
    assert later - ended == 3


def test_a_run_goes_on_when_its_limits_allow_it(world):
    def script(world, epochs, ckpt_path=None):
        trainer = world.trainer(max_epochs=epochs)
        trainer.fit(Net(), loader(), ckpt_path=ckpt_path)
        return trainer.global_step

    assert world.start(lambda world: script(world, 1)) == 6
    assert world.start(lambda world: script(world, 2, "last")) == 12
    assert world.start(lambda world: script(world, 1)) == 6  # anew


def test_a_finished_fit_whose_script_was_interrupted_goes_on_with_a_later_limit(world):
    def script(world, epochs):
        trainer = world.trainer(max_epochs=epochs)
        trainer.fit(Net(), loader())
        world.trainer().fit(Net(), loader())
        return trainer.global_step

    assert world.start(lambda world: script(world, 2), kill_after=20) is None
    assert world.start(lambda world: script(world, 3)) == 18


def test_in_a_job_what_was_finished_is_not_done_again(world, monkeypatch, capsys):
    for name in ("REKINDLE_JOB_NAME", "REKINDLE_JOB_NAMESPACE", "REKINDLE_JOB_UID"):
        monkeypatch.setenv(name, "x")
    first = world.start(sweep)
    capsys.readouterr()
    assert world.start(sweep) == first
    assert capsys.readouterr().out.count("is the result of this fit") == 3


def test_a_word_means_the_newest_fit(world):
    def script(world):
        first, second = Net(), Net()
        world.trainer(max_epochs=1).fit(first, loader())
        world.trainer(max_epochs=2).fit(second, loader())
        tested = Net()
        tested.test_step = lambda batch, batch_idx: None
        world.trainer().test(tested, loader(shuffle=False), ckpt_path="last")
        return weights(second), weights(tested)

    second, tested = world.start(script)
    assert second == tested
