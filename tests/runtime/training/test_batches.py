"""Batch sizes that change while training: exact samples, also over a stop and a resume."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle import audit
from rekindle.checkpoint import Store
from rekindle.checkpoint.objects.file import FileObjects
from rekindle.checkpoint.objects.interface import StoreError

N = 53


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(rk.DataModule):
    def __init__(self, batch_size=4):
        super().__init__()
        self.save_hyperparameters()

    def dataset(self):
        x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
        return TensorDataset(x, torch.arange(N))

    def train_dataloader(self):
        return DataLoader(self.dataset(), self.hparams.batch_size, shuffle=True)


class Growing(rk.Callback):
    """Doubles the batch each epoch, as scripts for another trainer do it."""

    def on_train_epoch_start(self, trainer, pl_module):
        trainer.datamodule.hparams.batch_size = 4 * 2**trainer.current_epoch


class Resizing(rk.Callback):
    """Changes the global batch after given steps."""

    def __init__(self, sizes):
        self.sizes = sizes

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in self.sizes:
            trainer.set_batch_size(global_batch_size=self.sizes[trainer.global_step])


class Witness(rk.Callback):
    def __init__(self, stop=None):
        self.stop, self.batches = stop, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, trainer.global_step, batch[1].tolist()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trainer.should_stop = trainer.global_step + 1 == self.stop

    def sizes(self, epoch):
        return [len(ids) for at, _, ids in self.batches if at == epoch]


def fit(root, *callbacks, stop=None, data=None, **flags):
    torch.manual_seed(1)
    witness, model = Witness(stop), Net()
    trainer = rk.Trainer(
        **{"max_epochs": 3, "accumulate_grad_batches": 2, "root": root, **flags},
        callbacks=[*callbacks, witness],
        enable_progress_bar=False,
    )
    trainer.fit(model, data or Data())
    return witness, torch.cat([p.detach().flatten() for p in model.parameters()])


def meta(root):
    store = Store.open(str(root))
    return store.read(store.commits()[0]).meta


def once(witness, epochs=3):
    return all(
        sorted(i for at, _, ids in witness.batches if at == epoch for i in ids) == list(range(N))
        for epoch in range(epochs)
    )


def test_a_batch_size_set_at_the_start_of_an_epoch_is_used_in_it(tmp_path):
    witness, _ = fit(tmp_path, Growing())
    assert [set(witness.sizes(epoch)) for epoch in range(3)] == [{4, 1}, {8, 5}, {16, 5}]
    assert once(witness)
    found = meta(tmp_path)
    assert [(e["epoch"], e["sample"], e["G"], e["m"]) for e in found["history"]] == [
        (0, 0, 8, 4),
        (1, 0, 16, 8),
        (2, 0, 32, 16),
    ]
    assert audit(found).exact


@pytest.mark.parametrize("stop", [5, 7, 9, 11])
def test_a_changed_batch_size_outlives_a_restart(tmp_path, stop):
    expected, weights = fit(tmp_path / "whole", Growing())
    first, _ = fit(tmp_path / "run", Growing(), stop=stop)
    store = Store.open(str(tmp_path / "run"))
    assert store.commits()[0].step == stop
    # The stopped run asked to end; the second one is told not to.
    second, again = resumed(tmp_path / "run", Growing())
    assert first.batches + second.batches == expected.batches
    assert torch.equal(again, weights)
    assert audit(meta(tmp_path / "run")).exact
    assert meta(tmp_path / "run")["history"] == meta(tmp_path / "whole")["history"]


def resumed(root, *callbacks, **flags):
    class GoOn(rk.Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.should_stop = False

    return fit(root, *callbacks, GoOn(), **flags)


def test_the_global_batch_changes_between_two_steps_of_an_epoch(tmp_path):
    witness, _ = fit(tmp_path, Resizing({2: 16, 4: 4}), max_epochs=1)
    per_step = {}
    for _, step, ids in witness.batches:
        per_step[step] = per_step.get(step, 0) + len(ids)
    assert list(per_step.values()) == [8, 8, 16, 16, 4, 1]
    assert once(witness, 1)
    assert [(e["step"], e["G"]) for e in meta(tmp_path)["history"]] == [(0, 8), (2, 16), (4, 4)]


def test_a_new_batch_size_of_the_script_wins_over_what_a_schedule_had_made(tmp_path):
    fit(tmp_path, Resizing({2: 16}), stop=3)
    resumed(tmp_path, global_batch_size=24)
    assert [(e["step"], e["G"]) for e in meta(tmp_path)["history"]] == [(0, 8), (2, 16), (3, 24)]
    assert audit(meta(tmp_path)).exact


def test_a_batch_of_another_script_is_named_beside_that_of_the_checkpoint(tmp_path, capsys):
    def data(batch_size):
        return DataLoader(Data().dataset(), batch_size)

    fit(tmp_path, stop=3, data=data(4))
    words = "global batch of 8, made of batch_size=4, and is at step 3; batch_size=16 does not"
    with pytest.raises(ValueError, match=words) as caught:
        resumed(tmp_path, data=data(16))
    assert "batch_size=4 again, or Trainer(global_batch_size=32) to" in str(caught.value)
    capsys.readouterr()
    resumed(tmp_path, data=data(4), accumulate_grad_batches=4, max_steps=4)
    said = capsys.readouterr().out
    assert "the global batch stays 8, as the checkpoint of step 3 has it; by this" in said
    assert "Trainer(global_batch_size=16)" in said
    resumed(tmp_path, data=data(16), global_batch_size=32, max_steps=6)
    assert [(e["step"], e["G"]) for e in meta(tmp_path)["history"]] == [(0, 8), (4, 32)]
    assert "stays" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({2: 6}, "global_batch_size=6 is not a multiple of the micro-batch 4"), ({2: -4}, "-4")],
)
def test_sizes_that_do_not_fit_are_refused_where_they_are_set(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Resizing(sizes))


def test_the_batch_size_is_set_while_training_only(tmp_path):
    with pytest.raises(rk.RequirementError, match=r"R10 Trainer.set_batch_size used outside"):
        rk.Trainer(max_epochs=1, root=tmp_path).set_batch_size(global_batch_size=8)


def rotated(seed, epoch):
    return [(i * 7 + epoch) % N for i in range(N)]


def ordered(order, **config):
    return Data().dataset(), rk.LoaderConfig(batch_size=4, num_workers=0, order=order, **config)


@pytest.mark.parametrize(
    "config",
    [
        {"order": rotated},
        {"order": "weighted", "weights": [i % 4 for i in range(N)], "num_samples": 70},
    ],
    ids=["own", "weighted"],
)
def test_weights_and_orders_of_a_scripts_own_resume_and_are_proven(tmp_path, config):
    expected, weights = fit(tmp_path / "whole", data=ordered(**config))
    first, _ = fit(tmp_path / "run", data=ordered(**config), stop=10)
    second, again = resumed(tmp_path / "run", data=ordered(**config))
    assert first.batches + second.batches == expected.batches
    assert torch.equal(again, weights)
    found = meta(tmp_path / "run")
    objects = Store.open(str(tmp_path / "run")).objects
    assert audit(found, objects.get).exact
    assert audit(found).digest_ok is None
    damaged = {"cursor": found["cursor"], "ledger": {**found["ledger"], "digest": "0"}}
    assert audit(damaged, objects.get).digest_ok is False


def test_other_weights_or_another_order_do_not_resume(tmp_path):
    fit(tmp_path, data=ordered(rotated), stop=10)
    with pytest.raises(rk.RequirementError, match="R12 .* since step 10 .other samples that the"):
        resumed(tmp_path, data=ordered(lambda seed, epoch: rotated(seed, epoch + 1)))
    with pytest.raises(rk.RequirementError, match=r"R12 .*order custom -> sequential"):
        resumed(tmp_path, data=ordered("sequential"))


def test_an_order_that_depends_on_anything_else_is_found_out_on_resume(tmp_path):
    fit(tmp_path, data=ordered(rotated), stop=20)

    def moody(seed, epoch):
        return rotated(seed, epoch if epoch == 0 else epoch + 3)

    with pytest.raises(rk.RequirementError, match="R12 the order function gives other samples"):
        resumed(tmp_path, data=ordered(moody))


def test_an_order_that_cannot_be_recorded_costs_the_audit_only(tmp_path, monkeypatch, capsys):
    expected, weights = fit(tmp_path / "whole", data=ordered(rotated))
    put = FileObjects.put

    def full(self, key, *rest, **more):
        if key.startswith("order/"):
            raise StoreError("no space is left")
        return put(self, key, *rest, **more)

    monkeypatch.setattr(FileObjects, "put", full)
    found, same = fit(tmp_path / "run", data=ordered(rotated))
    assert found.batches == expected.batches
    assert torch.equal(same, weights)
    said = capsys.readouterr().out
    assert "the order of the data cannot be recorded for an audit: no space is left" in said


class Empty(rk.ShardedStream):
    num_shards = 2

    def open(self, shard, state):
        return iter(())


def test_a_stream_without_a_single_sample_is_named(tmp_path):
    with pytest.raises(ValueError, match="Empty gave no samples for a step of epoch 0"):
        rk.Trainer(max_epochs=1, root=tmp_path).fit(Net(), DataLoader(Empty(), batch_size=4))
