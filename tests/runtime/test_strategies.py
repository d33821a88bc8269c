"""Strategies by the names that scripts use, and compiled models by the names of plain ones."""

import functools

import pytest
import torch
from prometheus_client import REGISTRY
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle.checkpoint import Store
from rekindle.metrics.prometheus import guard_counts
from rekindle.strategies import FSDP2, DDPStrategy, DeepSpeedStrategy, FSDPStrategy, parse
from rekindle.strategies.kinds import chosen

DATA = TensorDataset(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))


class Net(rk.Module):
    def __init__(self, wrap=False):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        if wrap:
            self.net = torch.compile(self.net, backend=wrap)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def fit(path, model=None, **flags):
    model = model or Net()
    flags = {"max_epochs": 2, "enable_progress_bar": False, **flags}
    trainer = rk.Trainer(root=path, **flags)
    trainer.fit(model, DataLoader(DATA, 4))
    return model


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            FSDPStrategy(
                auto_wrap_policy={nn.Linear},
                activation_checkpointing_policy={nn.Linear},
                sharding_strategy="FULL_SHARD",
                mixed_precision=None,
            ),
            FSDP2(wrap={nn.Linear}, ac={nn.Linear}),
        ),
        (FSDPStrategy(sharding_strategy="SHARD_GRAD_OP"), FSDP2(reshard=False)),
        (FSDPStrategy(sharding_strategy="HYBRID_SHARD"), FSDP2(hybrid=True)),
        (FSDPStrategy(cpu_offload=True), FSDP2(offload=True)),
        ("fsdp", FSDP2()),
    ],
)
def test_a_strategy_of_the_older_name_is_mapped(given, expected):
    assert parse(given) == expected


def test_policies_are_classes_or_the_functions_that_torch_has():
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy, size_based_auto_wrap_policy

    by_size = functools.partial(size_based_auto_wrap_policy, min_num_params=100)
    small, large = nn.Linear(4, 4), nn.Linear(20, 20)
    assert not chosen(by_size, small)
    assert chosen(by_size, large)
    assert chosen(ModuleWrapPolicy({nn.Linear}), small)
    assert not chosen(frozenset(), small)
    with pytest.raises(TypeError, match="must be a set of module classes"):
        FSDP2(wrap={"Linear"})


def test_deepspeed_says_what_became_of_its_options(tmp_path, capsys):
    strategy = DeepSpeedStrategy(
        stage=3,
        offload_optimizer=True,
        offload_parameters=False,
        allgather_bucket_size=5e8,
        reduce_bucket_size=5e8,
    )
    assert (strategy.reshard, strategy.offload) == (True, True)
    fit(tmp_path, strategy=strategy, max_steps=1)
    said = capsys.readouterr().out
    assert "DeepSpeedStrategy(stage=3) runs as FSDP2(reshard=True, offload=True)" in said
    assert "offloading puts parameters and optimizer state into host memory together" in said
    assert "allgather_bucket_size and reduce_bucket_size not used" in said
    assert [parse(f"deepspeed_stage_{stage}").reshard for stage in (1, 2, 3)] == [
        False, False, True,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="stages are 0, 1, 2 and 3"):
        DeepSpeedStrategy(stage=4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: parse("horovod"), ValueError, "not supported; use 'ddp' or 'fsdp2'"),
        (lambda: parse("colossalai"), ValueError, "not supported; use 'ddp' or 'fsdp2'"),
        (lambda: parse("ipu_strategy"), ValueError, "IPUs are not supported"),
        (lambda: parse("xla"), ValueError, "TPUs are not supported"),
        (lambda: parse("dp"), ValueError, "one process per device is faster; use 'ddp'"),
        (lambda: parse("zero"), ValueError, "is unknown; allowed are 'auto', 'ddp', 'fsdp2'"),
        (lambda: DDPStrategy(bucket=1), TypeError, "DDPStrategy has no option 'bucket'"),
        (lambda: FSDPStrategy(sharding_strategy="ALL"), ValueError, "allowed are FULL_SHARD"),
        (lambda: FSDPStrategy(mixed_precision="16"), ValueError, "use precision='16-mixed'"),
        (lambda: FSDP2(mp="16"), ValueError, "allowed are 'bf16', '32' and None"),
        (lambda: rk.Trainer(mesh={"pp": 2}), ValueError, "such as {'dp': 4, 'tp': 2}"),
        (lambda: rk.Trainer(compile="yes"), ValueError, "compile='yes' must be True, False"),
        (lambda: rk.Trainer(fp8_skip="head"), ValueError, "fp8_skip='head' must be a list"),
        (
            lambda: rk.Trainer(strategy=FSDP2(mp="bf16"), precision=64),
            ValueError,
            "exclude each other",
        ),
    ],
)
def test_what_is_not_there_is_refused_with_what_to_use(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_options_that_are_not_needed_are_named(tmp_path, capsys):
    fit(tmp_path, strategy=DDPStrategy(find_unused_parameters=True), max_steps=1)
    said = capsys.readouterr().out
    assert "DDPStrategy(find_unused_parameters=...) is not needed: unused parameters are" in said


def test_a_mesh_has_as_many_copies_as_there_are_processes_for(tmp_path):
    with pytest.raises(ValueError, match="needs a multiple of 2 processes, there are 1"):
        fit(tmp_path, mesh={"dp": 2, "tp": 2})
    fit(tmp_path, mesh={"dp": 4}, max_steps=1)  # one of four is there


@pytest.mark.processes
def test_a_compiled_model_trains_the_same_and_its_checkpoint_names_no_wrapper(tmp_path):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    from torch._dynamo.utils import clear_compilation_metrics

    clear_compilation_metrics()
    plain = fit(tmp_path / "plain")
    assert REGISTRY.get_sample_value("rekindle_compiled_graphs") == 0
    flagged = fit(tmp_path / "flagged", compile={"backend": backend})
    assert len(graphs) == 1, "compiled once, and not again for the next batch"
    assert REGISTRY.get_sample_value("rekindle_compiled_graphs") == 1
    assert REGISTRY.get_sample_value("rekindle_compiled_guards") == guard_counts()[0] > 1
    wrapped = fit(tmp_path / "wrapped", Net(wrap=backend), max_steps=5)
    assert next(iter(wrapped.state_dict())) == "net._orig_mod.0.weight"
    for name in ("flagged", "wrapped"):
        store = Store.open(str(tmp_path / name))
        state = store.load(store.read(store.commits()[0])).state
        assert list(state["model"]) == list(plain.state_dict())
        assert list(state["optimizers"][0]["state"]) == list(plain.state_dict())
    resumed = fit(tmp_path / "wrapped")
    for one in (flagged, resumed):
        pairs = zip(one.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.processes
def test_a_compiled_backward_pass_trains_what_an_eager_one_trains(tmp_path):
    plain, compiled = (
        fit(tmp_path / "plain"),
        fit(tmp_path / "compiled", compile={"backend": "aot_eager"}),
    )
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_torch_that_cannot_sum_shares_is_refused_before_anything_is_cut(monkeypatch):
    from torch.distributed.fsdp import FSDPModule

    from rekindle.strategies.sharding import shard

    monkeypatch.delattr(FSDPModule, "set_force_sum_reduction_for_comms")
    with pytest.raises(ValueError, match="Use strategy='ddp', or install a newer torch"):
        shard(torch.nn.Linear(1, 1), FSDP2(), None, 2, torch.device("cpu"))
