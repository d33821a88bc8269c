"""Each precision trains, and a loss scaler's state belongs to the run."""

import sys
import types

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.model import precision
from rekindle.model.precision import MixedPrecision

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))
SEEN = "dtype of the batch, of a new tensor, of a product"


class Net(rk.Module):
    def __init__(self, overflows=()):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.overflows = overflows
        self.seen = set()

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.net(x)
        self.seen.add((x.dtype, torch.ones(1).dtype, out.dtype))
        return nn.functional.mse_loss(out, y)

    validation_step = training_step

    def on_after_backward(self):
        if self.global_step + 1 in self.overflows:
            self.net[0].weight.grad.fill_(float("inf"))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(tmp_path, net=None, root="run", **flags):
    net = net or Net()
    flags = {"max_epochs": 2, "enable_progress_bar": False, "num_sanity_val_steps": 0, **flags}
    trainer = rk.Trainer(root=tmp_path / root, **flags)
    trainer.fit(net, DataLoader(DATA, 8), DataLoader(DATA, 16))
    return net, trainer


@pytest.mark.parametrize(
    ("given", "batch", "new", "product", "kept"),
    [
        (32, torch.float32, torch.float32, torch.float32, torch.float32),
        ("64", torch.float64, torch.float64, torch.float64, torch.float64),
        ("bf16-true", torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("bf16-mixed", torch.float32, torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_a_precision_decides_the_dtypes_of_a_step(tmp_path, given, batch, new, product, kept):
    net, trainer = fit(tmp_path, precision=given)
    assert net.seen == {(batch, new, product)}, SEEN
    state = trainer.optimizers[0].state[net.net[0].weight]
    assert (net.net[0].weight.dtype, state["exp_avg"].dtype) == (kept, kept)
    assert torch.get_default_dtype() is torch.float32


def test_float16_on_a_cpu_is_bfloat16_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="on this CPU 'bf16-mixed' is used instead"):
        net, trainer = fit(tmp_path, precision="16-mixed")
    assert {product for _, _, product in net.seen} == {torch.bfloat16}
    assert trainer.optimizer_steps == trainer.global_step == 12


def scaled(**options):
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=3, **options)
    return {"precision": MixedPrecision("16-mixed", "cpu", scaler), "gradient_clip_val": 0.1}


def test_steps_that_the_scaler_skips_are_counted(tmp_path):
    net, trainer = fit(tmp_path, Net(overflows=(1, 4)), **scaled())
    assert (trainer.global_step, trainer.optimizer_steps) == (12, 10)
    assert {product for _, _, product in net.seen} == {torch.float16}
    assert trainer.optimizers[0].state[net.net[0].weight]["step"] == 10


@pytest.mark.parametrize("stop", [3, 7])
def test_a_scaled_run_with_skipped_steps_resumes_bit_equal(tmp_path, stop):
    whole, _ = fit(tmp_path, Net(overflows=(2, 5, 9)), "whole", **scaled())
    fit(tmp_path, Net(overflows=(2, 5, 9)), max_steps=stop, **scaled())
    net, trainer = fit(tmp_path, Net(overflows=(2, 5, 9)), **scaled())
    assert (trainer.global_step, trainer.optimizer_steps) == (12, 9)
    for one, other in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_scaler_may_come_as_a_plugin(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1024.0))
    net, _ = fit(tmp_path, plugins=[plugin], max_steps=1)
    assert {product for _, _, product in net.seen} == {torch.float16}
    with pytest.raises(ValueError, match="both name a precision"):
        rk.Trainer(plugins=plugin, precision=64)


def test_gradients_are_clipped_after_unscaling(tmp_path):
    norms = []

    class Watched(Net):
        def on_before_optimizer_step(self, optimizer):
            norms.append(float(nn.utils.get_total_norm(p.grad for p in self.parameters())))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            norms.append(float(nn.utils.get_total_norm(p.grad for p in self.parameters())))

    _, trainer = fit(tmp_path, Watched(), max_steps=1, **scaled())
    before, after = norms
    assert float(trainer.callback_metrics["grad_norm"]) == pytest.approx(before)
    assert 0.1 < before < 20, "a scaled gradient would be a thousand times as large"
    assert after == pytest.approx(0.1, rel=1e-3)


def test_a_scaler_must_be_on_both_sides_of_a_resume(tmp_path):
    fit(tmp_path, max_steps=3)
    with pytest.raises(rk.RequirementError, match="R11 .* trained without a loss scaler"):
        fit(tmp_path, **scaled())


@pytest.mark.parametrize(
    ("given", "message"),
    [({"precision": "32-true"}, "allowed are '16-mixed'"),
     ({"precision": "bf16-mixed", "scaler": GradScaler("cpu")}, "needs no scaler")],
)  # fmt: skip
def test_a_mixed_precision_that_is_none_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        MixedPrecision(**given)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 512)
        self.decoder = nn.ModuleDict({"out": nn.Linear(512, 50257)})


def test_fp8_names_the_layers_that_do_not_fit():
    message = (
        r"R4 precision='fp8': 1 Linear layer has dimensions not divisible by 16: decoder.out "
        r"\(512x50257\). Exclude them \(fp8_skip=\['decoder.out'\]\) or pad."
    )
    with torch.device("meta"):
        net = Decoder()
    with pytest.raises(rk.RequirementError, match=message):
        precision.convert(net, "fp8", torch.device("cpu"))
    with pytest.raises(rk.RequirementError, match="fp8_skip names 'head', which is no Linear"):
        precision.convert(net, "fp8", torch.device("cpu"), ["head"])
    with pytest.raises(rk.RequirementError, match="R4 .* capability 8.9 or newer, this is a CPU"):
        precision.convert(net, "fp8", torch.device("cpu"), ["decoder.out"])


def test_fp8_exchanges_the_layers_that_fit_when_torchao_is_there(monkeypatch):
    with torch.device("meta"):
        net = Decoder()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "torchao", None)
    gpu = torch.device("cuda", 0)
    with pytest.raises(ModuleNotFoundError, match="pip install torchao"):
        precision.convert(net, "fp8", gpu, ["decoder.out"])
    chosen = []

    def convert_to_float8_training(module, *, module_filter_fn):
        named = module.named_modules()
        chosen.extend(path for path, layer in named if module_filter_fn(layer, path))

    float8 = types.SimpleNamespace(convert_to_float8_training=convert_to_float8_training)
    monkeypatch.setitem(sys.modules, "torchao.float8", float8)
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(float8=float8))
    precision.convert(net, "fp8", gpu, ["decoder.out"])
    assert chosen == ["body"]
