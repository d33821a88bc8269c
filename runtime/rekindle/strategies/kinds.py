"""The strategies as values, and what names and options of other trainers mean here."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from rekindle.plugins import named

Policy = Collection[type[nn.Module]] | Callable[..., bool]
"""Which submodules: their classes, or a function as torch's wrap policies are."""

_UNNEEDED = {
    "find_unused_parameters": "unused parameters are always found",
    "gradient_as_bucket_view": "gradients always lie in their buckets",
    "static_graph": "nothing depends on it",
    "bucket_cap_mb": "buckets have a fixed size, so that sums do not depend on it",
    "start_method": "processes are started by torchrun or by the job",
    "process_group_backend": "the device decides: NCCL on GPUs, gloo on CPUs",
    "timeout": "a silent peer is given ten minutes, a dead one is noticed at once",
    "use_orig_params": "parameters always keep their own shapes",
    "limit_all_gathers": "always done",
    "forward_prefetch": "left to torch",
    "backward_prefetch": "left to torch",
    "sync_module_states": "always done",
    "state_dict_type": "checkpoints are always sharded, and load on any number of processes",
}
"""Options of other trainers that need no switch here, and why."""


class Kind(type):
    """The class of strategies: `trainer.strategy` is an instance of what it stands for.

    Scripts ask ``isinstance(trainer.strategy, FSDPStrategy)``. What they have there are the
    processes of a run; `names` of it says which strategies those are.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        return type.__instancecheck__(cls, instance) or cls.__name__ in names_of(instance)


def names_of(instance: object) -> Collection[str]:
    """Lightning's names for the strategy of a running trainer; none for anything else."""
    found = getattr(type(instance), "strategy_names", None)
    return () if found is None else found.fget(instance)


@dataclass(frozen=True, kw_only=True)
class Strategy(metaclass=Kind):
    """The whole model on each process, gradients summed."""

    notices: tuple[str, ...] = ()
    """What the user should know about how the options were understood, a line each."""

    @property
    def shards(self) -> bool:
        """Whether a process holds only a share of the model."""
        return False

    # Hooks for subclasses, called after those of callbacks and module.

    def on_train_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """See `rekindle.Callback`."""

    def on_validation_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_validation_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_test_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_test_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_predict_start(self) -> None:
        """See `rekindle.Callback`."""

    def on_predict_end(self) -> None:
        """See `rekindle.Callback`."""

    def on_exception(self, exception: BaseException) -> None:
        """See `rekindle.Callback`."""


def _unneeded(who: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    unknown = [name for name in given if name not in _UNNEEDED]
    if unknown:
        raise TypeError(f"{who} has no option {unknown[0]!r}; remove it")
    return tuple(f"{who}({name}=...) is not needed: {_UNNEEDED[name]}" for name in given)


class DDPStrategy(Strategy):
    """Another name of ``"ddp"``; options that other trainers have are named as not needed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(notices=_unneeded("DDPStrategy", options))


@dataclass(frozen=True, kw_only=True)
class FSDP2(Strategy):
    """Parameters, gradients and optimizer state in shares, by torch's ``fully_shard``."""

    wrap: Policy = frozenset()
    """Submodules that are gathered one at a time; the rest is gathered as one."""
    reshard: bool = True
    """Whether a submodule's parameters are given back between forward and backward pass."""
    ac: Policy = frozenset()
    """Submodules whose activations are computed again in the backward pass instead of kept."""
    mp: Literal["bf16", "32"] | None = None
    """What gathered parameters and activations are in; None: as `precision` says."""
    offload: bool = False
    """Whether shares lie in host memory while they are not in use."""
    hybrid: bool = False
    """Whether shares are cut within a machine only, and machines hold copies of each other."""

    def __post_init__(self) -> None:
        if self.mp not in (None, "bf16", "32"):
            raise ValueError(f"FSDP2(mp={self.mp!r}): allowed are 'bf16', '32' and None")
        for name, policy in (("wrap", self.wrap), ("ac", self.ac)):
            _check_policy(name, policy)

    @property
    def shards(self) -> bool:
        """Always."""
        return True


def _check_policy(name: str, policy: object) -> None:
    if callable(policy) and not isinstance(policy, type):
        return
    if isinstance(policy, Collection) and all(
        isinstance(kind, type) and issubclass(kind, nn.Module) for kind in policy
    ):
        return
    raise TypeError(
        f"FSDP2({name}={policy!r}) must be a set of module classes, such as {{Block}}, or a policy "
        f"function"
    )


def chosen(policy: Policy, module: nn.Module) -> bool:
    """Whether a policy means this submodule."""
    if callable(policy) and not isinstance(policy, Collection):
        size = sum(parameter.numel() for parameter in module.parameters())
        return bool(policy(module=module, recurse=False, nonwrapped_numel=size))
    return isinstance(module, tuple(policy))


_SHARDING: dict[str, dict[str, Any]] = {
    "FULL_SHARD": {"reshard": True},
    "SHARD_GRAD_OP": {"reshard": False},
    "HYBRID_SHARD": {"reshard": True, "hybrid": True},
    "_HYBRID_SHARD_ZERO2": {"reshard": False, "hybrid": True},
}


class FSDPStrategy(metaclass=Kind):
    """`FSDP2` by the names that Lightning has for its options."""

    def __new__(  # type: ignore[misc]
        cls,
        *,
        auto_wrap_policy: Policy | None = None,
        activation_checkpointing_policy: Policy | None = None,
        sharding_strategy: object = "FULL_SHARD",
        mixed_precision: object = None,
        cpu_offload: object = False,
        **options: Any,
    ) -> Strategy:
        """An `FSDP2`, or for NO_SHARD a plain `Strategy`."""
        return _fsdp(
            auto_wrap_policy,
            activation_checkpointing_policy,
            sharding_strategy,
            mixed_precision,
            cpu_offload,
            options,
        )


def _fsdp(
    auto_wrap_policy: Policy | None,
    activation_checkpointing_policy: Policy | None,
    sharding_strategy: object,
    mixed_precision: object,
    cpu_offload: object,
    options: Mapping[str, Any],
) -> Strategy:
    name = str(getattr(sharding_strategy, "name", sharding_strategy)).upper()
    notices = _unneeded("FSDPStrategy", options)
    if name == "NO_SHARD":
        return Strategy(notices=(*notices, "FSDPStrategy(sharding_strategy='NO_SHARD') is 'ddp'"))
    if name not in _SHARDING:
        raise ValueError(
            f"FSDPStrategy(sharding_strategy={sharding_strategy!r}): allowed are FULL_SHARD, "
            f"SHARD_GRAD_OP, HYBRID_SHARD and NO_SHARD"
        )
    return FSDP2(
        wrap=auto_wrap_policy or frozenset(),
        ac=activation_checkpointing_policy or frozenset(),
        mp=_mixed(mixed_precision),
        offload=bool(getattr(cpu_offload, "offload_params", cpu_offload)),
        notices=notices,
        **_SHARDING[name],
    )


def _mixed(given: object) -> Literal["bf16", "32"] | None:
    """A MixedPrecision of FSDP1, by its dtype of parameters."""
    if given is None:
        return None
    kinds: dict[str, Literal["bf16", "32"]] = {
        "torch.bfloat16": "bf16",
        "bf16": "bf16",
        "torch.float32": "32",
        "None": "32",
    }
    found = kinds.get(str(getattr(given, "param_dtype", given)))
    if found is None:
        raise ValueError(
            f"FSDPStrategy(mixed_precision={given!r}): parameters may be gathered in bfloat16 or "
            f"float32; for float16 use precision='16-mixed'"
        )
    return found


class DeepSpeedStrategy(metaclass=Kind):
    """ZeRO's stages on `FSDP2`, without the deepspeed package; `notices` say what became of them.

    Raises ValueError for a stage that does not exist.
    """

    def __new__(  # type: ignore[misc]
        cls,
        *,
        stage: int = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        allgather_bucket_size: float | None = None,
        reduce_bucket_size: float | None = None,
    ) -> Strategy:
        """An `FSDP2`, or for stage 0 a plain `Strategy`."""
        return _deepspeed(
            stage,
            offload_optimizer,
            offload_parameters,
            allgather_bucket_size,
            reduce_bucket_size,
        )


def _deepspeed(
    stage: int,
    offload_optimizer: bool,
    offload_parameters: bool,
    allgather_bucket_size: float | None,
    reduce_bucket_size: float | None,
) -> Strategy:
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"DeepSpeedStrategy(stage={stage!r}): stages are 0, 1, 2 and 3")
    if stage == 0:
        return Strategy(notices=("DeepSpeedStrategy(stage=0) is 'ddp'",))
    reshard, offload = stage == 3, offload_optimizer or offload_parameters
    what = f"FSDP2(reshard={reshard}{', offload=True' if offload else ''})"
    notices = [f"DeepSpeedStrategy(stage={stage}) runs as {what}; deepspeed itself is not used"]
    if stage == 1:
        notices[0] += ", and gradients are sharded too"
    if offload and not (offload_optimizer and offload_parameters):
        notices.append("offloading puts parameters and optimizer state into host memory together")
    unused = [
        name
        for name, value in (
            ("allgather_bucket_size", allgather_bucket_size),
            ("reduce_bucket_size", reduce_bucket_size),
        )
        if value is not None
    ]
    if unused:
        names = " and ".join(unused)
        notices.append(f"{names} not used: what is gathered at a time is decided by FSDP2(wrap=)")
    return FSDP2(reshard=reshard, offload=offload, notices=tuple(notices))


_NAMES: dict[str, Callable[[], Strategy]] = {
    "auto": Strategy,
    "ddp": DDPStrategy,
    "ddp_find_unused_parameters_true": DDPStrategy,
    "ddp_find_unused_parameters_false": DDPStrategy,
    "fsdp": FSDP2,
    "fsdp2": FSDP2,
    "fsdp_cpu_offload": lambda: FSDP2(offload=True),
    "deepspeed": lambda: DeepSpeedStrategy(stage=2),
    "deepspeed_stage_1": lambda: DeepSpeedStrategy(stage=1),
    "deepspeed_stage_2": lambda: DeepSpeedStrategy(stage=2),
    "deepspeed_stage_2_offload": lambda: DeepSpeedStrategy(stage=2, offload_optimizer=True),
    "deepspeed_stage_3": lambda: DeepSpeedStrategy(stage=3),
    "deepspeed_stage_3_offload": lambda: DeepSpeedStrategy(
        stage=3, offload_optimizer=True, offload_parameters=True
    ),
}
_GONE = {
    "horovod": "use 'ddp' or 'fsdp2'",
    "colossalai": "use 'ddp' or 'fsdp2'",
    "bagua": "use 'ddp' or 'fsdp2'",
    "fairscale": "use 'fsdp2'",
    "ipu_strategy": "IPUs are not supported; use 'ddp' on CPUs or GPUs",
    "tpu_spawn": "TPUs are not supported; use 'ddp' on CPUs or GPUs",
    "xla": "TPUs are not supported; use 'ddp' on CPUs or GPUs",
    "dp": "one process per device is faster; use 'ddp'",
    "ddp_spawn": "processes are started by torchrun or by devices=; use 'ddp'",
    "ddp_fork": "processes are started by torchrun or by devices=; use 'ddp'",
    "ddp_notebook": "processes are started by torchrun or by devices=; use 'ddp'",
}


def parse(given: object) -> Strategy:
    """What a script wrote, checked; raises ValueError with what to use instead."""
    given = named("strategy", given, {*_NAMES, *_GONE})
    if isinstance(given, Strategy):
        return given
    if isinstance(given, str) and given in _NAMES:
        return _NAMES[given]()
    if isinstance(given, str) and given in _GONE:
        raise ValueError(f"strategy={given!r} is not supported; {_GONE[given]}")
    allowed = ", ".join(repr(name) for name in ("auto", "ddp", "fsdp2", "deepspeed"))
    raise ValueError(
        f"strategy={given!r} is unknown; allowed are {allowed}, or an object of rekindle.strategies"
    )


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Processes in two dimensions: copies of the data, and parts of a layer."""

    dp: int
    tp: int = 1


def parse_mesh(given: object) -> Mesh | None:
    """``{"dp": copies, "tp": parts}``; raises ValueError for anything else."""
    if given is None:
        return None
    if (
        not isinstance(given, Mapping)
        or set(given) - {"dp", "tp"}
        or "dp" not in given
        or not all(type(size) is int and size >= 1 for size in given.values())
    ):
        raise ValueError(
            f"mesh={given!r} must name numbers of processes, such as {{'dp': 4, 'tp': 2}}"
        )
    return Mesh(**given)
