"""A model that is built without memory gets the weights of one that was built directly."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.model.deferred import configure

CPU = torch.device("cpu")
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Net(rk.Module):
    def configure_model(self):
        self.seen = torch.empty(1).device.type
        self.embed = nn.Embedding(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.head.weight = self.embed.weight
        nn.init.zeros_(self.head.bias)
        nn.init.trunc_normal_(self.body.linear1.weight, std=0.02)
        nn.init.orthogonal_(self.body.linear2.weight)
        self.register_buffer("scale", torch.arange(6) / torch.tensor(3.0) + 1, persistent=False)

    def forward(self, x):
        return self.head(self.body(self.norm(x * self.scale)))

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Turned(rk.Module):
    def configure_model(self):
        wide = torch.arange(6.0).reshape(2, 3).mul(2)
        self.register_buffer("tall", wide.t_() + 1)


def direct():
    torch.manual_seed(3)
    net = Net()
    net.configure_model()
    return net


def test_weights_are_those_of_a_model_that_was_built_directly():
    expected, after = direct(), torch.rand(1)
    torch.manual_seed(3)
    net = Net()
    configure(net, CPU)
    assert (net.seen, expected.seen) == ("meta", "cpu")
    assert torch.equal(torch.rand(1), after), "as many numbers were drawn"
    assert net.head.weight is net.embed.weight
    ours, theirs = (
        net.state_dict() | {"s": net.scale},
        expected.state_dict() | {"s": expected.scale},
    )
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())


def test_fit_builds_the_model_once_and_a_checkpoint_rebuilds_it(tmp_path):
    torch.manual_seed(3)
    net, expected = Net(), direct()
    torch.manual_seed(3)
    for limit in (0, 2):
        trainer = rk.Trainer(root=tmp_path / "run", max_steps=limit or 1, enable_progress_bar=False)
        trainer.fit(net, DataLoader(TensorDataset(X), 4))
        assert net.seen == "meta"
    assert not torch.equal(net.body.linear1.weight, expected.body.linear1.weight)
    again = Net.load_from_checkpoint(tmp_path / "run")
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    (predicted,) = rk.Trainer(enable_progress_bar=False).predict(again, DataLoader(X, 8))
    assert torch.equal(predicted, again.eval()(X)), "predict_step is forward"


def test_a_model_that_needs_values_is_told_what_to_do():
    class Hasty(rk.Module):
        def configure_model(self):
            self.size = int(torch.ones(3).sum())

    with pytest.raises(RuntimeError, match="Hasty.configure_model needs values .* in __init__"):
        configure(Hasty(), CPU)


def test_a_tensor_whose_shape_is_changed_in_place_is_filled_in_the_one_it_had():
    net, expected = Turned(), Turned()
    configure(net, CPU)
    expected.configure_model()
    assert torch.equal(net.tall, expected.tall)
