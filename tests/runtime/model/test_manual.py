"""Modules that own their update rule: several optimizers, counted, saved, resumed bit-equal."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle import audit
from rekindle.checkpoint import Store
from rekindle.model.precision import MixedPrecision
from rekindle.strategies.sharding import networks

PROGRAM = Path(__file__).parents[1] / "program"
REAL = torch.randn(37, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + 2
DATA = TensorDataset(REAL)


class Gan(rk.Module):
    def __init__(self, way="calls"):
        super().__init__()
        torch.manual_seed(3)
        self.automatic_optimization = False
        self.way = way
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.1), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))

    def critic_loss(self, real):
        fake = self.generator(torch.randn_like(real)).detach()
        return (
            nn.functional.softplus(-self.critic(real)).mean()
            + nn.functional.softplus(self.critic(fake)).mean()
        )

    def generator_loss(self, real):
        return nn.functional.softplus(-self.critic(self.generator(torch.randn_like(real)))).mean()

    def training_step(self, batch, batch_idx):
        (real,) = batch
        critic, generator = self.optimizers()
        if self.way == "short":
            self.step(critic, self.critic_loss(real), clip=1.0)
            self.step(generator, self.generator_loss(real), clip=1.0)
        else:
            self._by_hand(real, critic, generator)
        for schedule in self.lr_schedulers():
            schedule.step()
        self.log("norm", self.critic[0].weight.detach().norm())

    def _by_hand(self, real, critic, generator):
        for optimizer, loss in ((critic, self.critic_loss), (generator, self.generator_loss)):
            self.toggle_optimizer(optimizer)
            value = loss(real)
            optimizer.zero_grad()
            self.manual_backward(value)
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        critic = torch.optim.AdamW(self.critic.parameters(), lr=0.01)
        generator = torch.optim.SGD(self.generator.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR
        return [critic, generator], [schedule(critic, 3, 0.9), schedule(generator, 5, 0.8)]


def fit(tmp_path, module, root="run", **flags):
    flags = {"max_epochs": 2, "enable_progress_bar": False, **flags}
    trainer = rk.Trainer(root=tmp_path / root, **flags)
    trainer.fit(module, DataLoader(DATA, 4, shuffle=True))
    return trainer


def equal(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("way", ["calls", "short"])
def test_two_optimizers_do_what_a_loop_by_hand_does(tmp_path, way):
    seen = []

    class Compared(Gan):
        def training_step(self, batch, batch_idx):
            judged = self.global_step == 12
            if judged:
                state = torch.get_rng_state()
                seen.append(self.by_hand(batch[0]))
                torch.set_rng_state(state)
            super().training_step(batch, batch_idx)
            if judged:
                seen.append([p.detach().clone() for p in self.parameters()])

        def by_hand(self, real):
            twin = copy.deepcopy(self)
            for mine, (name, loss) in zip(
                self.trainer.optimizers,
                (("critic", twin.critic_loss), ("generator", twin.generator_loss)),
                strict=True,
            ):
                part = getattr(twin, name)
                optimizer = type(mine)(part.parameters(), lr=0.1)
                optimizer.load_state_dict(copy.deepcopy(mine.state_dict()))
                optimizer.zero_grad()
                loss(real).backward()
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
                optimizer.step()
            return list(twin.parameters())

    fit(tmp_path, Compared(way), max_steps=14)
    by_hand, trained = seen
    assert all(torch.equal(a, b) for a, b in zip(by_hand, trained, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A GAN that was never stopped."""
    model = Gan()
    trainer = fit(tmp_path_factory.mktemp("whole"), model)
    assert (trainer.global_step, trainer.optimizer_steps) == (40, 40)
    assert "norm" in trainer.callback_metrics
    return model


@pytest.mark.processes
@pytest.mark.parametrize("stop", [6, 28])
def test_a_stopped_gan_resumes_bit_equal(tmp_path, whole, stop):
    fit(tmp_path, Gan(), max_steps=stop)
    resumed = Gan()
    trainer = fit(tmp_path, resumed)
    assert (trainer.global_step, trainer.optimizer_steps) == (40, 40)
    assert equal(resumed, whole)
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01 * 0.9**6, 0.05 * 0.8**4])


def test_a_scaled_gan_resumes_bit_equal(tmp_path):
    def flags():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**33, growth_interval=4)
        return {"precision": MixedPrecision("16-mixed", "cpu", scaler)}

    whole = Gan()
    trainer = fit(tmp_path, whole, "whole", **flags())
    assert 0 < trainer.optimizer_steps < 40, "the first scales are far too large"
    fit(tmp_path, Gan(), max_steps=14, **flags())
    resumed = Gan()
    assert fit(tmp_path, resumed, **flags()).optimizer_steps == trainer.optimizer_steps
    assert equal(resumed, whole)


def test_a_closure_is_evaluated_as_often_as_the_optimizer_likes(tmp_path):
    class Fitted(rk.Module):
        automatic = False

        def __init__(self):
            super().__init__()
            self.center = nn.Parameter(torch.zeros(2))

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            def closure():
                optimizer.zero_grad()
                loss = (batch[0] - self.center).square().mean()
                self.manual_backward(loss)
                return loss

            return optimizer.step(closure)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=1.0)

    model = Fitted()
    trainer = fit(tmp_path, model, max_steps=1, checkpoint_every=None)
    assert trainer.optimizer_steps == 1
    assert torch.allclose(model.center, torch.tensor([2.0, 2.0]), atol=0.4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gradient_clip_val": 1.0}, "self.clip_gradients"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2 with manual optimization"),
    ],
)
def test_flags_that_only_the_automatic_form_has_are_refused(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Gan(), **flags)


def test_an_automatic_module_is_told_how_to_become_manual(tmp_path):
    class Half(Gan):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = True

        def training_step(self, batch, batch_idx):
            assert self.optimizers().param_groups[0]["lr"] == 0.1
            assert self.lr_schedulers() is None
            with pytest.raises(RuntimeError, match="the trainer steps this optimizer itself"):
                self.optimizers().step()
            self.manual_backward(self.critic_loss(batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(RuntimeError, match=r"Half.manual_backward\(\) is for manual optimization"):
        fit(tmp_path, Half())
    with pytest.raises(RuntimeError, match=r"R10 Gan.optimizers\(\) used outside of fit"):
        Gan().optimizers()


def test_an_optimizer_of_somebody_else_is_refused(tmp_path):
    class Foreign(Gan):
        def training_step(self, batch, batch_idx):
            self.step(torch.optim.SGD(self.parameters(), 0.1), self.critic_loss(batch[0]))

    with pytest.raises(ValueError, match="got a SGD that configure_optimizers did not return"):
        fit(tmp_path, Foreign())


@pytest.mark.processes
def test_ranks_that_update_themselves_do_what_one_process_does(ranks, tmp_path):
    program = runpy.run_path(str(PROGRAM / "manual.py"))
    alone = program["main"]({"root": str(tmp_path / "alone"), "batch_size": 8})

    def task(root, **flags):
        return {"program": "manual.py", "root": root, "batch_size": 4, "flags": flags}

    tasks = [task("whole"), task("cut", max_steps=21), task("cut"), task("fewer", max_steps=21)]
    for whole, part, resumed, _ in ranks(2, *tasks):
        assert (whole["step"], whole["updates"], part["step"]) == (45, 45, 21)
        # The last step of an epoch has one batch; the other rank repeats it and adds nothing.
        assert whole["calls"] == 15
        assert whole["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
        for ours, theirs in zip(whole["parameters"], alone["parameters"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert resumed["parameters"] == whole["parameters"]
        assert resumed["metrics"] == whole["metrics"]
    # One process alone goes through the same steps, with an update for each of their two batches.
    fewer = program["main"](task(str(tmp_path / "fewer")))
    assert (fewer["step"], fewer["calls"]) == (3 * (7 + 14), 8 * 2 - 2)
    assert fewer["updates"] == 3 * (7 + fewer["calls"])
    store = Store.open(str(tmp_path / "fewer"))
    meta = store.read(store.commits()[0]).meta
    assert audit(meta).exact
    assert [(h["world_size"], h["G"]) for h in meta["history"]] == [(2, 8), (1, 8)]


@pytest.mark.processes
@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_gradients_that_wait_for_a_step_are_kept_over_a_resume(ranks, tmp_path, strategy):
    program = runpy.run_path(str(PROGRAM / "manual.py"))

    def task(root, batch=4, strategy=strategy, **flags):
        more = {"adding": True, "sharded": True, "strategy": strategy, "flags": flags}
        return {"program": "manual.py", "root": root, "batch_size": batch} | more

    def alone(root, **flags):
        return program["main"](task(str(tmp_path / root), 8, "auto", **flags))

    whole = alone("alone")
    # With 5 steps an epoch these ends lie where gradients wait: in the middle, and over an epoch.
    for stop in (4, 7):
        assert alone(f"alone{stop}", max_steps=stop)["step"] < 15
        assert alone(f"alone{stop}")["parameters"] == whole["parameters"]
    tasks = [task("whole"), task("cut", max_steps=4), task("cut"), task("fewer", max_steps=4)]
    for together, part, resumed, fewer in ranks(2, *tasks):
        assert part["step"] == fewer["step"] == 4
        for ours, theirs in zip(together["parameters"], whole["parameters"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert resumed["parameters"] == together["parameters"]
    store = Store.open(str(tmp_path / "fewer"))
    waiting = store.load(store.read(store.commits()[0])).state["gradients"]
    assert {name.partition(".")[0] for name in waiting} == {"first", "second"}


@pytest.mark.processes
def test_networks_in_shares_are_updated_as_whole_ones_are(ranks, tmp_path, shares):
    program = runpy.run_path(str(PROGRAM / "manual.py"))

    def task(root, batch=4, **more):
        return {"program": "manual.py", "root": root, "batch_size": batch, "sharded": True} | more

    plain = program["main"](task(str(tmp_path / "plain"), 8))
    toggled = program["main"](task(str(tmp_path / "toggled"), 8, toggling=True, validate=True))
    tasks = [
        task("whole", strategy="fsdp"),
        task("cut", strategy="fsdp", flags={"max_steps": 21}),
        task("cut", strategy="fsdp"),
        task("toggled", strategy="deepspeed_stage_2", toggling=True, validate=True),
    ]
    for whole, part, resumed, switched in ranks(2, *tasks):
        assert (whole["updates"], part["step"]) == (45, 21)
        assert whole["own"] < 0.7 * plain["own"]
        for run, alone in ((whole, plain), (switched, toggled)):
            assert run["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
            for ours, theirs in zip(run["parameters"], alone["parameters"], strict=True):
                assert ours == pytest.approx(theirs, abs=1e-5)
        assert resumed["parameters"] == whole["parameters"]


def test_a_parameter_of_no_network_cannot_be_in_shares():
    class Mine(Gan):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    whole = Gan()
    assert networks(whole) == [whole.generator, whole.critic]
    with pytest.raises(ValueError, match="Mine.scale is a parameter of no submodule"):
        networks(Mine())
