"""What a step costs less than its parts by hand must give the same bits as those."""

import pytest
import torch

from rekindle.model.optimizers import Optimization
from rekindle.training import update
from rekindle.training.update import Update


def updating(optimizer, **options):
    return Update(Optimization(optimizers=(optimizer,), schedulers=()), **options)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7, dtype=dtype), torch.nn.Tanh(), torch.nn.Linear(7, 1, dtype=dtype)
    )


def gradients(net):
    return [parameter.grad.clone() for parameter in net.parameters()]


def loss_of(net, dtype, lane, shape=()):
    batch = torch.randn(3, 5, generator=torch.Generator().manual_seed(lane)).to(dtype)
    return net(batch).square().mean().reshape(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lanes", [[(8, 8)] * 3, [(3, 8), (3, 8), (2, 8)]])
def test_the_engine_called_directly_adds_the_gradients_of_the_shares_of_a_loss(dtype, lanes):
    ours, plain = network(dtype), network(dtype)
    adding = updating(torch.optim.SGD(ours.parameters(), 0.1))
    for lane, (size, samples) in enumerate(lanes):
        adding.add(loss_of(ours, dtype, lane), size, samples)
        share = loss_of(plain, dtype, lane)
        (share if size == samples else share * (size / samples)).backward()
    assert adding._one is not None, "the first loss makes the others cheap"
    for got, expected in zip(gradients(ours), gradients(plain), strict=True):
        assert torch.equal(got, expected)


def test_losses_of_other_shapes_and_dtypes_and_a_torch_without_that_function(monkeypatch):
    small, whole = torch.bfloat16, torch.float32
    kinds = [((), small), ((), whole), ((1,), whole), ((), torch.float64), ((), whole)]
    for engine in (update._run_backward, None):
        monkeypatch.setattr(update, "_run_backward", engine)
        ours, plain = network(), network()
        adding = updating(torch.optim.SGD(ours.parameters(), 0.1))
        for lane, (shape, dtype) in enumerate(kinds):
            adding.add(loss_of(ours, torch.float32, lane, shape).to(dtype), 2, 6)
            (loss_of(plain, torch.float32, lane, shape).to(dtype) * (2 / 6)).sum().backward()
        for got, expected in zip(gradients(ours), gradients(plain), strict=True):
            assert torch.equal(got, expected)


def test_gradients_are_cleared_of_groups_that_came_later_too():
    net = network()
    optimizer = torch.optim.SGD(net[0].parameters(), 0.1)
    clearing = updating(optimizer)
    optimizer.add_param_group({"params": net[2].parameters()})
    clearing.add(loss_of(net, torch.float32, 0), 1, 1)
    clearing.clear()
    assert [parameter.grad for parameter in net.parameters()] == [None] * 4


@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_zero_grad_of_its_own_is_called(where):
    calls = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append("class")

    net = network()
    optimizer = (Own if where == "class" else torch.optim.SGD)(net.parameters(), 0.1)
    if where == "instance":
        optimizer.zero_grad = lambda: calls.append("instance")
    updating(optimizer).clear()
    assert calls == [where]


def test_with_several_ranks_a_parameter_belongs_to_one_optimizer():
    net = network()
    first, second = (torch.optim.SGD(net[at].parameters(), 0.1) for at in (0, 2))
    apart = Update(Optimization(optimizers=(first, second), schedulers=()), automatic=False)
    apart.sum_over_ranks(list(net.parameters()), first=True)
    second.add_param_group({"params": [net[0].weight]})
    shared = Update(Optimization(optimizers=(first, second), schedulers=()), automatic=False)
    with pytest.raises(ValueError, match="two optimizers share a parameter"):
        shared.sum_over_ranks(list(net.parameters()), first=True)
