import pytest
import torch

from rekindle import Callback
from rekindle.callbacks import GradNorms

pytestmark = pytest.mark.processes


class Naive(Callback):
    """What everybody writes: one read per parameter."""

    def __init__(self):
        self.norms = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = {n: p.grad.flatten() for n, p in pl_module.named_parameters()}
        self.norms = {n: g.norm().item() for n, g in named.items()}
        for prefix in ("backbone", "head"):
            parts = [g for n, g in named.items() if n.startswith(prefix)]
            self.norms[prefix] = torch.cat(parts).norm().item()
        self.norms["total"] = torch.cat(list(named.values())).norm().item()


@pytest.mark.parametrize(
    ("per", "names"),
    [
        ("module", ["backbone", "head", "total"]),
        (
            "parameter",
            ["backbone.bias", "backbone.weight", "head.1.bias", "head.1.weight", "total"],
        ),
        ("total", ["total"]),
    ],
)
def test_norms_equal_naive_ones(fit, per, names):
    naive = Naive()
    trainer = fit(GradNorms(every=5, per=per), naive, max_steps=5, gradient_clip_val=1e-3)
    found = {
        name.removeprefix("grad_norm/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("grad_norm/")
    }
    assert sorted(found) == names
    assert found == {name: pytest.approx(naive.norms[name], rel=1e-5) for name in names}


def test_only_every_nth_step_is_looked_at(fit, monkeypatch):
    seen = []
    monkeypatch.setattr(GradNorms, "norms", lambda self, module: seen.append(1) or {})
    fit(GradNorms(every=4))
    assert len(seen) == 3


def test_the_gradient_monitor_of_the_books_runs(fit):
    class GradientMonitor(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step % 4:
                return
            for name, p in pl_module.named_parameters():
                if p.grad is not None:
                    pl_module.log(f"gradients/{name}_norm", p.grad.norm(2).item())

    metrics = fit(GradientMonitor()).callback_metrics
    assert float(metrics["gradients/backbone.weight_norm"]) > 0


@pytest.mark.parametrize("bad", [{"every": 0}, {"per": "layer"}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match="GradNorms"):
        GradNorms(**bad)
