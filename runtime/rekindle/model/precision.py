"""The dtype policy: what `precision=` means.

``32-true`` computes in the parameters' own dtype; ``64-true`` and ``bf16-true`` turn parameters and
floating-point batches into that dtype, and new tensors of a step get it too. ``bf16-mixed`` keeps
parameters, gradients and optimizer state in float32 and runs steps under autocast to bfloat16,
which has float32's range and therefore needs no loss scaling. ``16-mixed`` does the same in float16
with a `torch.amp.GradScaler`: losses are multiplied by a scale that adapts itself, and a step whose
gradients have overflowed is skipped. On a CPU it falls back to ``bf16-mixed`` with a warning,
unless a scaler is given by hand: ``MixedPrecision("16-mixed", "cpu", GradScaler("cpu"))``.

``fp8`` exchanges the Linear layers for torchao's, and runs the rest under autocast to bfloat16. The
matrix units take dimensions in multiples of 16 only, which is checked before (R4).
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from rekindle.errors.requirement import RequirementError

Precision = Literal["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed", "fp8"]

ALIASES: dict[object, Precision] = {
    "32-true": "32-true",
    "32": "32-true",
    32: "32-true",
    "64-true": "64-true",
    "64": "64-true",
    64: "64-true",
    "bf16-true": "bf16-true",
    "bf16-mixed": "bf16-mixed",
    "bf16": "bf16-mixed",
    "16-mixed": "16-mixed",
    "16": "16-mixed",
    16: "16-mixed",
    "fp8": "fp8",
}
"""What `Trainer(precision=)` accepts, and what it means."""

_REFUSED = {
    "16-true": "float16 parameters lose small updates; use 'bf16-true', or '16-mixed'",
    "int8": "int8 holds no gradients; train with 'bf16-mixed' or 'fp8', and quantize the trained "
    "model for inference with torchao.quantization.quantize_",
}
_PARAMETERS = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "fp8": torch.bfloat16}
_MULTIPLE = 16
"""Rows and columns that a float8 matrix unit takes at a time."""


@dataclass(frozen=True)
class MixedPrecision:
    """Mixed precision with a scaler of one's own; takes the place of the flag's text.

    Raises ValueError for a precision that is not a mixed one, or a scaler where none is used.
    """

    precision: str | int = "16-mixed"
    device: str = "cuda"
    scaler: torch.amp.GradScaler | None = None

    def __post_init__(self) -> None:
        name = ALIASES.get(self.precision)
        if name not in ("16-mixed", "bf16-mixed"):
            raise ValueError(
                f"MixedPrecision(precision={self.precision!r}): allowed are '16-mixed' and "
                f"'bf16-mixed'"
            )
        if self.scaler is not None and name != "16-mixed":
            raise ValueError(
                "MixedPrecision('bf16-mixed', scaler=...): bfloat16 needs no scaler, leave it out"
            )
        object.__setattr__(self, "precision", name)


def parse(given: object) -> Precision | MixedPrecision:
    """What a script wrote, checked; raises ValueError with what is allowed."""
    if isinstance(given, MixedPrecision):
        return given
    if isinstance(given, str | int) and given in ALIASES:
        return ALIASES[given]
    if isinstance(given, str) and given in _REFUSED:
        raise ValueError(f"precision={given!r} is not supported: {_REFUSED[given]}")
    names = ", ".join(repr(key) for key in ALIASES)
    raise ValueError(f"precision={given!r} is not known; allowed are {names}")


def name_of(precision: Precision | MixedPrecision, device: torch.device) -> Precision:
    """The precision in use on a device: without a scaler of its own, a CPU has no float16."""
    if isinstance(precision, MixedPrecision):
        name: Precision = ALIASES[precision.precision]
        given = precision.scaler is not None
    else:
        name, given = precision, False
    return "bf16-mixed" if name == "16-mixed" and device.type == "cpu" and not given else name


def scaler_of(
    precision: Precision | MixedPrecision, device: torch.device
) -> torch.amp.GradScaler | None:
    """The loss scaler, for the one precision that needs it; warns where that is replaced."""
    asked = precision.precision if isinstance(precision, MixedPrecision) else precision
    name = name_of(precision, device)
    if name != "16-mixed":
        if asked == "16-mixed":
            warnings.warn(
                "precision='16-mixed' is for GPUs; on this CPU 'bf16-mixed' is used instead",
                stacklevel=2,
            )
        return None
    if isinstance(precision, MixedPrecision) and precision.scaler is not None:
        return precision.scaler
    return torch.amp.GradScaler(device.type)


class _DefaultDtype(AbstractContextManager[None]):
    """Makes new floating-point tensors of one dtype; can be entered again."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._before = dtype, dtype

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        torch.set_default_dtype(self._before)


def autocast(
    precision: Precision | MixedPrecision, device: torch.device
) -> AbstractContextManager[object] | None:
    """The context to run steps in, or None when there is none to enter.

    The context is reusable: entering the same object again is cheaper than making a new one.
    """
    name = name_of(precision, device)
    if name in _PARAMETERS:
        return _DefaultDtype(_PARAMETERS[name])
    if name in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[name])
    return None


def mover(precision: Precision | MixedPrecision, device: torch.device) -> Callable[..., Any] | None:
    """What brings a batch to the device and into the dtype; None when it is right as it comes."""
    dtype = dtype_of(precision, device)
    if dtype is None and device.type == "cpu":
        return None
    return lambda batch, _loader=0: moved(batch, device, dtype)


def dtype_of(precision: Precision | MixedPrecision, device: torch.device) -> torch.dtype | None:
    """The dtype that floating-point batches are brought into; None: they stay as they are."""
    return _PARAMETERS.get(name_of(precision, device))


def moved(value: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """Move a nested batch; tensors in pinned memory travel without waiting.

    Without a device only the dtype is changed.
    """
    if isinstance(value, torch.Tensor):
        kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=kind, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(item, device, dtype) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device, dtype) for item in value)
    if device is not None and hasattr(value, "to"):
        return value.to(device)
    return value


def convert(
    module: nn.Module,
    precision: Precision | MixedPrecision,
    device: torch.device,
    fp8_skip: Collection[str] = (),
) -> None:
    """Bring a module into the dtype that the precision asks for, in place; R4 for fp8."""
    name = name_of(precision, device)
    if name in _PARAMETERS:
        module.to(_PARAMETERS[name])
    if name == "fp8":
        _to_float8(module, device, frozenset(fp8_skip))


def _to_float8(module: nn.Module, device: torch.device, skip: frozenset[str]) -> None:
    linear = dict(_linear_layers(module))
    unknown = sorted(skip - set(linear))
    if unknown:
        raise RequirementError(
            f"R4 fp8_skip names {unknown[0]!r}, which is no Linear layer. Linear layers are: "
            f"{', '.join(linear) or 'none'}."
        )
    odd = [
        f"{path} ({layer.in_features}x{layer.out_features})"
        for path, layer in linear.items()
        if path not in skip and (layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE)
    ]
    if odd:
        shown = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")
        names = [text.partition(" (")[0] for text in odd]
        layers = "1 Linear layer has" if len(odd) == 1 else f"{len(odd)} Linear layers have"
        raise RequirementError(
            f"R4 precision='fp8': {layers} dimensions not divisible by {_MULTIPLE}: {shown}. "
            f"Exclude them (fp8_skip={names}) or pad."
        )
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        found = "a CPU"
        if device.type == "cuda":
            found = f"a GPU of compute capability {torch.cuda.get_device_capability(device)}"
        raise RequirementError(
            f"R4 precision='fp8' needs a GPU of compute capability 8.9 or newer, this is {found}. "
            f"Use precision='bf16-mixed'."
        )
    try:
        float8: Any = import_module("torchao.float8")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "precision='fp8' needs the package torchao, which is not installed: pip install torchao"
        ) from None
    float8.convert_to_float8_training(
        module, module_filter_fn=lambda layer, path: path in linear and path not in skip
    )


def _linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, child in module.named_modules():
        if isinstance(child, nn.Linear):
            yield path, child
