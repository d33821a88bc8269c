"""What `Trainer(data={...})` promises: bit-equal on any number of ranks, and changed datasets."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle import audit
from rekindle.checkpoint import Store

BITWISE = {"guarantee": "bitwise"}
TWELVE = {
    "tensors": True,
    "n": 104,
    "batch_size": 2,
    "net": {"norm": True},
    "flags": {"global_batch_size": 24, "gradient_clip_val": 0.5, "max_epochs": 2, "data": BITWISE},
}


def newest(path):
    store = Store.open(str(path))
    return store.read(store.commits()[0])


@pytest.mark.processes
def test_bitwise_weights_are_equal_on_one_to_five_ranks(fit, ranks, tmp_path):
    # 104 samples: the last step of an epoch has 4 micro-batches, so one of five ranks has none.
    alone = fit(**TWELVE, root="1")
    assert (alone["error"], alone["step"]) == (None, 10)
    for world_size in (2, 3, 4, 5):
        task = {**TWELVE, "root": str(world_size)}
        tasks = [task]
        if world_size == 5:
            tasks.append({**TWELVE, "root": "moved", "stop_at": 4})
        results = ranks(world_size, *tasks)
        assert {r[0]["weights"] for r in results} == {alone["weights"]}, world_size
        assert audit(newest(tmp_path / str(world_size)).meta).exact
    assert {r[1]["exit"] for r in results} == {75}
    assert fit(**TWELVE, root="moved")["weights"] == alone["weights"]
    sizes = [entry["world_size"] for entry in newest(tmp_path / "moved").meta["history"]]
    assert sizes == [5, 1]


@pytest.mark.processes
def test_augmentation_and_weights_are_equal_for_any_workers_before_and_after(fit):
    task = {"flags": {"accumulate_grad_batches": 3, "max_epochs": 2}}
    whole = fit(**task, root="whole")
    first = fit(**task, stop_at=5, workers=2)
    second = fit(**task, workers=1)
    assert (first["exit"], second["exit"]) == (75, 0)
    assert second["weights"] == whole["weights"]
    assert first["used"] + second["used"] == whole["used"]


class Net(rk.Module):
    """Half of it is used by few batches only."""

    def __init__(self, norm=False):
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4) if norm else torch.nn.Identity()
        self.never = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        x = self.one(batch[0])
        if batch_idx == 2:
            x = x + self.two(batch[0])
        return self.norm(x).sin().square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)


def train(root, *, data=None, n=53, model=None, **flags):
    if model is None:
        torch.manual_seed(1)
        model = Net()
    trainer = rk.Trainer(
        **{"max_epochs": 2, "accumulate_grad_batches": 3, "root": root, **flags},
        data=data,
        enable_progress_bar=False,
    )
    samples = TensorDataset(torch.randn(n, 3, generator=torch.Generator().manual_seed(2)))
    trainer.fit(model, DataLoader(samples, 4, shuffle=True))
    return model


def test_bitwise_means_the_same_gradients_as_without(tmp_path):
    plain = train(tmp_path / "1")
    exact = train(tmp_path / "2", data=BITWISE)
    for one, other in zip(plain.parameters(), exact.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_bitwise_step_merges_statistics_once_with_their_mean(tmp_path):
    torch.manual_seed(1)
    model = train(tmp_path, data=BITWISE, max_epochs=1, n=12, model=Net(norm=True))
    assert int(model.norm.num_batches_tracked) == 1
    torch.manual_seed(1)
    fresh, parts = Net(norm=True), []
    samples = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    order = rk.GlobalOrder(n=12, seed=0).ids(0, 0, 12)
    for lane in range(3):
        probe = Net(norm=True)
        probe.load_state_dict(fresh.state_dict())
        probe.training_step([samples[order[4 * lane : 4 * lane + 4]]], lane)
        parts.append(probe.norm.running_mean)
    assert torch.allclose(model.norm.running_mean, sum(parts) / 3)


def test_bitwise_leaves_a_parameter_alone_that_nobody_used(tmp_path):
    torch.manual_seed(1)
    before = Net().never.weight.detach().clone()
    assert torch.equal(train(tmp_path, data=BITWISE).never.weight, before)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"guarantee": "exact"}, r"data\['guarantee'\]='exact' is not known; allowed are 'order'"),
        ({"on_chnage": "fail"}, "data has no option 'on_chnage'; did you mean 'on_change'"),
        ("bitwise", "data must be a mapping"),
    ],
)
def test_wrong_options_are_named(tmp_path, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rk.Trainer(max_epochs=1, data=data)


def test_what_cannot_be_bitwise_is_refused(tmp_path):
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    class Synced(Net):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.SyncBatchNorm(4)

    for model, message in [(Manual(), "automatic optimization"), (Synced(), "SyncBatchNorm")]:
        with pytest.raises(ValueError, match=message):
            train(tmp_path, data=BITWISE, model=model, accumulate_grad_batches=1)


def test_a_changed_dataset_refuses_to_resume_by_default(tmp_path):
    train(tmp_path, max_steps=7, max_epochs=None)
    with pytest.raises(
        rk.RequirementError,
        match=r"R12 dataset changed since step 7 \(53 -> 54 samples\). Exactly-once cannot hold. "
        r"Restore the dataset, .*: Trainer\(data=\{\"on_change\": \"restart-epoch\"\}\)\.",
    ):
        train(tmp_path, n=54)


@pytest.mark.parametrize(("steps", "restarted"), [(7, 24), (5, 0)])
def test_a_changed_dataset_may_begin_the_epoch_anew(tmp_path, capsys, steps, restarted):
    train(tmp_path, max_steps=steps, max_epochs=None)
    train(tmp_path, n=60, max_epochs=3, data={"on_change": "restart-epoch"})
    assert "R12 dataset changed since step" in capsys.readouterr().out
    meta = newest(tmp_path).meta
    assert (meta["cursor"]["epoch"], meta["cursor"]["N"]) == (3, 60)
    found = audit(meta)
    assert (found.digest_ok, found.samples_restarted) == (True, restarted)
    assert found.samples_used == found.samples_expected == 53 + restarted + 2 * 60
    assert found.exact is (restarted == 0)


def test_a_chapter_that_ended_is_carried_on(tmp_path):
    train(tmp_path, max_steps=5, max_epochs=None)
    train(tmp_path, n=60, max_epochs=2, data={"on_change": "restart-epoch"})
    train(tmp_path, n=60, max_epochs=3)
    train(tmp_path, n=61, max_epochs=4, data={"on_change": "restart-epoch"})
    found = audit(newest(tmp_path).meta)
    assert found.exact
    assert [(e.first, e.count, e.expected) for e in found.epochs] == [
        (0, 1, 53),
        (1, 2, 60),
        (3, 1, 61),
    ]


def test_a_changed_split_refuses_to_resume(tmp_path):
    data = TensorDataset(torch.randn(60, 3, generator=torch.Generator().manual_seed(2)))

    def fit(seed):
        part = rk.split(data, [0.8, 0.2], seed=seed)[0]
        trainer = rk.Trainer(max_steps=5 + seed, root=tmp_path, enable_progress_bar=False)
        trainer.fit(Net(), DataLoader(part, 4, shuffle=True))

    fit(seed=0)
    with pytest.raises(rk.RequirementError, match="R12 .*same length, other contents"):
        fit(seed=1)


class Reloaded(rk.DataModule):
    """Counts how often its training loader is asked for."""

    def __init__(self, changing=False):
        super().__init__()
        self.asked, self.changing = 0, changing

    def train_dataloader(self):
        self.asked += 1
        seed = self.asked if self.changing else 2
        data = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(data), 4, shuffle=True)


def test_loaders_are_made_anew_every_so_many_epochs(tmp_path):
    def fit(root, every, data):
        trainer = rk.Trainer(
            max_epochs=5,
            root=tmp_path / root,
            reload_dataloaders_every_n_epochs=every,
            enable_progress_bar=False,
        )
        torch.manual_seed(1)
        model = Net()
        trainer.fit(model, data)
        return model

    plain, often = Reloaded(), Reloaded()
    once, again = fit("once", 0, plain), fit("often", 2, often)
    assert (plain.asked, often.asked) == (1, 3)
    assert torch.equal(once.one.weight, again.one.weight)
    other = fit("other", 1, Reloaded(changing=True))
    assert not torch.equal(once.one.weight, other.one.weight), "other data are trained with"
