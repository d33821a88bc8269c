"""R20: what a run does about gradients that are not finite."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def rows(*bad, without=False):
    """Samples in windows of 4; those numbered in `bad` cannot be learnt, or are not there."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    keep = torch.ones(40, dtype=torch.bool)
    for window in bad:
        x[4 * window + 1, 2] = float("nan")
        keep[4 * window : 4 * window + 4] = False
    return TensorDataset(x[keep] if without else x)


def fit(root, data, **flags):
    model = Net()
    trainer = rk.Trainer(
        root=root,
        accumulate_grad_batches=2,
        enable_progress_bar=False,
        **{"max_epochs": 1, **flags},
    )
    trainer.fit(model, DataLoader(data, 2))
    return trainer, [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_by_default_a_run_stops_before_the_weights_are_spoilt(tmp_path):
    with pytest.raises(
        rk.RequirementError, match=r"R20 non-finite loss at step 4 \(samples 12..15\)"
    ):
        fit(tmp_path, rows(3), num_sanity_val_steps=0)


def test_a_gradient_alone_is_seen_too(tmp_path):
    class Root(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + (self.net[2].bias * 0).sqrt().sum() if batch_idx == 5 else loss

    trainer = rk.Trainer(max_epochs=1, root=tmp_path, enable_progress_bar=False)
    with pytest.raises(rk.RequirementError, match=r"R20 non-finite gradient at step 6 "):
        trainer.fit(Root(), DataLoader(rows(), 2))


def test_a_skipped_window_leaves_the_weights_of_a_run_without_it(tmp_path, capsys):
    # Step 3 is saved before the window is met that comes after it, and again where it ends.
    flags = {"nonfinite": "skip", "checkpoint_every": rk.Every(steps=1)}
    trainer, found = fit(tmp_path / "a", rows(3, 9), **flags)
    _, expected = fit(tmp_path / "b", rows(3, 9, without=True))
    assert same(found, expected)
    assert trainer.global_step == 8
    said = capsys.readouterr().out
    assert "R20 non-finite loss at step 4 (samples 12..15); skipped that window (1 of 3" in said


@pytest.mark.parametrize("every", [2, 3])
def test_a_rollback_leaves_the_weights_of_a_run_without_the_window(tmp_path, capsys, every):
    flags = {"nonfinite": "rollback", "checkpoint_every": rk.Every(steps=every)}
    trainer, found = fit(tmp_path / "a", rows(5), **flags)
    _, expected = fit(tmp_path / "b", rows(5, without=True))
    assert same(found, expected)
    assert trainer.global_step == 9
    said = capsys.readouterr().out
    at = 5 // every * every
    assert (
        f"R20 non-finite loss at step 6 (samples 20..23); rolled back to {at} and skipped that "
        f"window (1 of 3 allowed)."
    ) in said


def test_a_restart_leaves_out_the_same_windows(tmp_path):
    flags = {"nonfinite": "rollback", "checkpoint_every": rk.Every(steps=2)}
    fit(tmp_path / "a", rows(5), max_steps=7, **flags)
    _, found = fit(tmp_path / "a", rows(5), **flags)
    _, expected = fit(tmp_path / "b", rows(5, without=True))
    assert same(found, expected)


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(rk.RequirementError, match="R20 .* There is no checkpoint before it"):
        fit(tmp_path, rows(5), nonfinite="rollback")


def test_four_windows_are_too_many(tmp_path):
    with pytest.raises(rk.RequirementError, match="R20 .* 3 windows were skipped before"):
        fit(tmp_path, rows(1, 3, 5, 7), nonfinite="skip")


def test_a_callback_may_go_back_too(tmp_path, capsys):
    class Spike(rk.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 8 and batch_idx == 15:
                trainer.roll_back("spike at step 6", step=5)

    _, found = fit(tmp_path / "a", rows(), callbacks=[Spike()], checkpoint_every=rk.Every(steps=2))
    _, expected = fit(tmp_path / "b", rows(5, without=True))
    assert same(found, expected)
    assert "spike at step 6; rolled back to 4 and skipped that window" in capsys.readouterr().out


def test_sparse_gradients_are_looked_at_as_well(tmp_path):
    class Sparse(Net):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(4, 3, sparse=True)

        def training_step(self, batch, batch_idx):
            rows = self.table(torch.tensor([batch_idx % 2]))
            return rows.sum() + (rows * 0 * (0.0 if batch_idx < 5 else float("inf"))).sum()

        def configure_optimizers(self):
            return torch.optim.SparseAdam(self.table.parameters())

    trainer = rk.Trainer(max_epochs=1, root=tmp_path, enable_progress_bar=False)
    with pytest.raises(rk.RequirementError, match="R20 non-finite loss at step 6"):
        trainer.fit(Sparse(), DataLoader(rows(), 2))
