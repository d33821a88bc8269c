"""Every form in which Lightning takes data, stopped between two steps and resumed: same weights."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

import rekindle as rk
from rekindle import audit
from rekindle.checkpoint import Store
from rekindle.data.combined import CombinedLoader
from rekindle.data.script_data import take_apart_all
from rekindle.ranks.distributed import World
from rekindle.training.evaluation import _share
from rekindle.training.sources import dealt


class Noisy(Dataset):
    """Draws from all generators, as augmentations do."""

    def __init__(self, count=20, start=0):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return torch.tensor([float(self.start + index), float(noise)])


class Own(Sampler):
    """Draws from a generator that it holds."""

    def __init__(self, count=20):
        self.count, self.generator = count, np.random.default_rng()

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(self.generator.permutation(self.count).tolist())


class Buckets(Sampler):
    """Batches of uneven sizes, in an order of its own."""

    def __len__(self):
        return 6

    def __iter__(self):
        order = torch.randperm(20).tolist()
        for start, stop in ((0, 2), (2, 7), (7, 8), (8, 14), (14, 17), (17, 20)):
            yield order[start:stop]


class Stream(IterableDataset):
    def __iter__(self):
        for number in range(20):
            yield torch.tensor([float(number), float(torch.rand(()))])


class Anything:
    """Can be iterated over, and nothing else."""

    def __iter__(self):
        for number in range(7):
            yield torch.rand(3, 2) + number


class Placed:
    """The same with a position."""

    def __init__(self):
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state_dict):
        self.at = state_dict["at"]

    def __iter__(self):
        while self.at < 7:
            self.at += 1
            yield torch.rand(3, 2) + self.at
        self.at = 0


def shuffled(count, size=3, start=0):
    return DataLoader(Noisy(count, start), size, shuffle=True)


FORMS = {
    "batch sampler": lambda: DataLoader(Noisy(), batch_sampler=Buckets()),
    "sampler": lambda: DataLoader(Noisy(), 3, sampler=Own()),
    "dict": lambda: {"a": shuffled(20), "b": shuffled(7, start=100)},
    "list": lambda: [shuffled(20), DataLoader(Noisy(), batch_sampler=Buckets())],
    "shortest": lambda: CombinedLoader([shuffled(20), shuffled(30)], "min_size"),
    "longest": lambda: CombinedLoader([shuffled(20), shuffled(7)], "max_size"),
    "range": lambda: list(range(7)),
    "placed": Placed,
}
LOOSE = {
    "stream": lambda: DataLoader(Stream(), 3),
    "anything": Anything,
    "a stream in a dict": lambda: {"a": shuffled(20), "b": DataLoader(Stream(), 3)},
}


def numbers(batch):
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        found = [numbers(item) for item in batch if item is not None]
        return torch.cat(found)
    return torch.as_tensor(batch).float().reshape(-1)


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        values = numbers(batch)
        self.seen.append((self.trainer.global_step, batch_idx, values.tolist()))
        loss = self.layer(values.reshape(-1, 1) / 100).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(rk.Callback):
    def __init__(self, at):
        self.at = at

    def on_fit_start(self, trainer, pl_module):
        trainer.should_stop = False

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trainer.should_stop = trainer.global_step + 1 == self.at


def fit(root, given, *, stop=None, validation=None, model=None, **flags):
    model = Net() if model is None else model
    trainer = rk.Trainer(
        **{"max_epochs": 2, "root": root, **flags},
        callbacks=[Stop(stop)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if isinstance(given, rk.DataModule):
        trainer.fit(model, datamodule=given)
    else:
        trainer.fit(model, given, validation)
    model.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return model


def proof(root):
    store = Store.open(str(root))
    return audit(store.read(store.commits()[0]).meta)


def assert_same(tmp_path, make, stop, **flags):
    whole = fit(tmp_path / "whole", make(), **flags)
    torch.manual_seed(stop)
    first = fit(tmp_path / "run", make(), stop=stop, **flags)
    torch.rand(5)
    second = fit(tmp_path / "run", make(), **flags)
    assert first.seen + second.seen == whole.seen
    assert all(map(torch.equal, second.parameters(), whole.parameters()))
    assert second.metrics == whole.metrics
    return whole


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stop", [2, 5])
def test_a_form_with_positions_resumes_exactly(tmp_path, form, stop):
    flags = {"data": {"guarantee": "order"}}
    assert_same(tmp_path, FORMS[form], stop, **flags)
    found = proof(tmp_path / "run")
    assert found.samples_used == found.samples_expected
    assert found.samples_repeated == found.samples_missed == 0
    # Of a sampler's order the audit reads what is recorded beside the checkpoints.
    assert found.digest_ok is (None if form == "sampler" else True)


@pytest.mark.parametrize("form", ["dict", "batch sampler"])
def test_a_form_resumes_exactly_with_accumulated_gradients(tmp_path, form):
    assert_same(tmp_path, FORMS[form], 2, accumulate_grad_batches=2)


def test_epochs_of_several_loaders_are_in_other_orders(tmp_path):
    seen = [values for _, _, values in fit(tmp_path, FORMS["dict"]()).seen]
    assert len(seen) == 14
    a, b = [sum((v[part::2][::1] for v in seen[:7]), []) for part in (0, 1)]
    assert a != b
    assert seen[:7] != seen[7:]


@pytest.mark.parametrize("form", LOOSE)
def test_a_form_without_positions_is_passed_over_and_said(tmp_path, form, capsys):
    whole = assert_same(tmp_path, LOOSE[form], 3)
    said = capsys.readouterr().out
    assert "data['guarantee']='approximate'" in said
    assert "what was used is passed over" in said
    assert whole.seen
    store = Store.open(str(tmp_path / "run"))
    assert store.read(store.commits()[0]).meta["guarantee"] == "approximate"


@pytest.mark.parametrize("form", LOOSE)
def test_in_a_job_a_form_without_positions_has_to_be_asked_for(tmp_path, form, monkeypatch):
    monkeypatch.setenv("REKINDLE_JOB_NAME", "job")
    with pytest.raises(rk.RequirementError, match=r"R12b .* has no state_dict; .*'approximate'"):
        fit(tmp_path, LOOSE[form]())
    assert fit(tmp_path, LOOSE[form](), max_steps=1, data={"guarantee": "approximate"}).seen


def test_sizes_in_samples_are_refused_for_whole_batches(tmp_path):
    for flags in ({"global_batch_size": 4}, {"micro_batch": 4}):
        with pytest.raises(ValueError, match="whole batches"):
            fit(tmp_path, FORMS["batch sampler"](), **flags)


class Stages(rk.DataModule):
    """Other data in each epoch, in batches of another size."""

    def train_dataloader(self):
        epoch = self.trainer.current_epoch
        return DataLoader(Noisy(6 + 4 * epoch, start=100 * epoch), 2 + epoch // 2, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Noisy(2 + self.trainer.current_epoch), 2)


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.seen.append(("validation", batch_idx, numbers(batch).tolist()))
        self.log("val", numbers(batch).sum())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stop", [2, 3, 5, 8, 10])
def test_other_data_in_other_epochs_resume_exactly(tmp_path, every, stop):
    flags = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": every, "num_sanity_val_steps": 0}
    whole = fit(tmp_path / "whole", Stages(), model=Validated(), **flags)
    first = fit(tmp_path / "run", Stages(), model=Validated(), stop=stop, **flags)
    second = fit(tmp_path / "run", Stages(), model=Validated(), **flags)
    steps = [one for one in first.seen + second.seen if one[0] != "validation"]
    assert steps == [one for one in whole.seen if one[0] != "validation"]
    assert second.seen == whole.seen[-len(second.seen) :]
    assert all(map(torch.equal, second.parameters(), whole.parameters()))
    assert second.metrics == whole.metrics
    assert proof(tmp_path / "run").exact


class Whenever(rk.DataModule):
    """Other data each time that it is asked."""

    asked = 0

    def train_dataloader(self):
        self.asked += 1
        return DataLoader(Noisy(6 + self.asked), 2)


def test_data_that_do_not_come_again_are_refused(tmp_path):
    flags = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1}
    fit(tmp_path, Whenever(), stop=9, **flags)
    with pytest.raises(rk.RequirementError, match="R12 dataset changed since step 9"):
        fit(tmp_path, Whenever(), **flags)


class Parts(Net):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val", numbers(batch).sum() + torch.rand(()))


def test_validation_of_several_loaders_is_the_same_after_a_resume(tmp_path):
    def run(where, stop=None):
        validation = {"a": DataLoader(Noisy(5), 2), "b": DataLoader(Stream(), 3)}
        return fit(
            tmp_path / where, FORMS["dict"](), stop=stop, validation=validation, model=Parts()
        )

    whole = run("whole")
    run("run", stop=9)
    second = run("run")
    assert second.metrics == whole.metrics
    assert {"val/dataloader_idx_0", "val/dataloader_idx_1"} < set(whole.metrics)


class Met(World):
    """Ranks that are threads and meet where they gather."""

    def gather(self, value):
        barrier, said = self.control
        said[self.rank] = value
        barrier.wait()
        found = [said[rank] for rank in range(self.size)]
        barrier.wait()
        return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_share_a_stream_to_evaluate_and_miss_nothing(size):
    barrier, said = threading.Barrier(size, timeout=60), {}

    def share(rank):
        meeting = (barrier, said)
        world = Met(rank=rank, size=size, local_rank=0, device="cpu", control=meeting)
        data = dealt(take_apart_all(DataLoader(Stream(), 3)), 1.0, world, 0)
        found = _share(data.parts[0], world, None, lambda: False, Net())
        return [(index, batch[:, 0].tolist()) for index, _, batch in found]

    with ThreadPoolExecutor(size) as pool:
        shares = list(pool.map(share, range(size)))
    whole = [(n, list(map(float, range(3 * n, min(3 * n + 3, 20))))) for n in range(7)]
    assert sorted(sum(shares, [])) == whole
    assert all(index % size == rank for rank in range(size) for index, _ in shares[rank])
