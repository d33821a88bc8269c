"""`Module.configure_model`: layers that are built without memory, and made real where they belong.

The hook runs under ``torch.device("meta")``: tensors have shapes and no values, so building a model
of any size takes no memory and next to no time. What would have been computed is written down, one
operation after the other, and done once the device is known (`materialize`), into the device's
memory. Random numbers are drawn on the CPU, tensor by tensor, from the generator as it was when the
hook began. So the weights are those of a model that was built directly, and at no time is more than
one tensor in the host's memory.

Tensors are told apart by their storages, because layers wrap and alias what they have made
(`nn.Parameter`, tied weights, views) in ways that no operation shows. Some functions of
`torch.nn.init` look at the values they draw, and leave tensors without values alone; they are
noticed when they ask, and written down as a whole.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rekindle.model.step_hooks import overridden

META = torch.device("meta")
_SEEDED = torch.Tag.nondeterministic_seeded
_IS_META: Any = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
_Operation = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on tensors without values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tree_map(_as_it_is, (args, kwargs))
        result = func(*args, **kwargs)
        if any(_unreal(leaf) for leaf in tree_leaves((given, result))):
            self.operations.append((func, *given, tree_map(_as_it_is, result)))
        return result


class _Notes(TorchFunctionMode):
    """Writes down what comes to pass without an operation.

    Values from Python, and functions of `torch.nn.init` that skip a tensor without values.
    """

    def __init__(self, operations: list[_Operation]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func == _IS_META and answer:
            frame = sys._getframe(1)
            code = frame.f_code
            function = getattr(nn.init, code.co_name, None)
            if getattr(function, "__code__", None) is code:
                names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
                rest = {name: frame.f_locals[name] for name in names[1:]}
                self._operations.append((function, args, rest, args[0]))
        elif func in (torch.tensor, torch.as_tensor, torch.asarray) and _unreal(answer):
            self._operations.append((func, args, {**(kwargs or {}), "device": META}, answer))
        return answer


def configure(module: nn.Module, device: torch.device) -> None:
    """Run `configure_model` and make what it builds real on a device; once per module.

    Raises RuntimeError when the hook needs the values of what it builds.
    """
    hook = getattr(module, "configure_model", None)
    older = overridden(module, "configure_sharded_model")
    if hook is None or module.__dict__.get("_configured"):
        return
    before = torch.get_rng_state()
    recorder = _Recorder()
    try:
        with META, recorder, _Notes(recorder.operations):
            if older is not None:
                older()
            hook()
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        raise RuntimeError(
            f"{type(module).__name__}.configure_model needs values of tensors that have none yet "
            f"({error}). Build that part in __init__, or name a device: torch.zeros(3, "
            f"device='cpu')."
        ) from error
    module.__dict__["_configured"] = True
    torch.set_rng_state(before)
    materialize(module, recorder.operations, device)


def materialize(module: nn.Module, operations: list[_Operation], device: torch.device) -> None:
    """Do what was written down, and give the module's tensors their values."""
    storages: dict[int, torch.Tensor] = {}
    """Storage of a tensor without values -> all of the real one, as bytes."""

    def real(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "meta":
            return device
        if not _unreal(value):
            return value
        if _key(value) not in storages:
            raise RuntimeError(
                f"{type(module).__name__}.configure_model makes a tensor of shape "
                f"{list(value.shape)} in a way that cannot be repeated. Build that part in "
                f"__init__."
            )
        return _real(value, storages, device)

    with torch.no_grad():
        for func, args, kwargs, result in operations:
            random = _SEEDED in getattr(func, "tags", {_SEEDED})
            if random and _unreal(args[0] if args else None) and _unreal(result):
                _drawn(func, real, args, kwargs, result)
                continue
            found = func(*tree_map(real, args), **tree_map(real, kwargs))
            for ours, made in zip(tree_leaves(result), tree_leaves(found), strict=True):
                if _unreal(ours) and _key(ours) not in storages:
                    _real(ours, storages, device).copy_(made)
        for owner, table, name, tensor in _tensors(module):
            if not _unreal(tensor):
                continue
            value = real(tensor)
            if isinstance(tensor, nn.Parameter):
                # In its place, so that a weight that two layers share stays one.
                value = nn.Parameter(value, requires_grad=tensor.requires_grad)
                value.__dict__.update(tensor.__dict__)
                _everywhere(module, tensor, value)
            else:
                getattr(owner, table)[name] = value


def _drawn(func: Any, real: Any, args: Any, kwargs: Any, result: torch.Tensor) -> None:
    """A random operation, on the CPU: the same numbers whatever the device."""
    there = real(args[0])
    if there.device.type == "cpu":
        func(*tree_map(real, args), **tree_map(real, kwargs))
        return
    here = torch.empty_like(there, device="cpu")
    func(here, *tree_map(real, args[1:]), **tree_map(real, kwargs))
    there.copy_(here)


def _unreal(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def _as_it_is(value: Any) -> Any:
    """The tensor in its present shape: ``t_`` and its kin change the one that we were given."""
    return value.detach() if _unreal(value) else value


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _real(
    tensor: torch.Tensor, storages: dict[int, torch.Tensor], device: torch.device
) -> torch.Tensor:
    key = _key(tensor)
    if key not in storages:
        size = tensor.untyped_storage().nbytes()
        storages[key] = torch.empty(size, dtype=torch.uint8, device=device)
    whole = torch.empty(0, dtype=tensor.dtype, device=device)
    return whole.set_(
        storages[key].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    for owner in module.modules():
        for table in ("_parameters", "_buffers"):
            for name, tensor in list(getattr(owner, table).items()):
                if tensor is not None:
                    yield owner, table, name, tensor


def _everywhere(module: nn.Module, old: torch.Tensor, new: torch.Tensor) -> None:
    for owner, table, name, tensor in _tensors(module):
        if tensor is old:
            getattr(owner, table)[name] = new
