"""A table of a model's layers: types, sizes, and the shapes that an example input takes."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

_UNITS = (" ", "K", "M", "B", "T")
_UNKNOWN = "?"
_BYTES = {"64-true": 8, "bf16-true": 2, "16-true": 2}
"""Bytes of a parameter, where they are not four."""


class LayerSummary:
    """One layer; the shapes are known after its first forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.in_size: str | list[Any] = _UNKNOWN
        self.out_size: str | list[Any] = _UNKNOWN
        self._hook = module.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, given: Any, named: Any, output: Any) -> None:
        values = (*given, *named.values())
        self.in_size = parse_batch_shape(values[0] if len(values) == 1 else values)
        self.out_size = parse_batch_shape(output)
        self.detach_hook()

    def __del__(self) -> None:
        self.detach_hook()

    def detach_hook(self) -> None:
        """Wait for no forward pass any more."""
        self._hook.remove()

    @property
    def layer_type(self) -> str:
        """Name of the layer's class."""
        return type(self._module).__name__

    @property
    def num_parameters(self) -> int:
        """Numbers in its parameters."""
        return _count(self._module.parameters())

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        return self._module.training


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters if not isinstance(p, UninitializedParameter))


class ModelSummary:
    """The layers of a model down to a depth (-1: all of them, 0: none).

    With an attribute `example_input_array` the model is called with it once, without gradients, to
    see shapes and operations.
    """

    def __init__(self, model: Any, max_depth: int = 1) -> None:
        if type(max_depth) is not int or max_depth < -1:
            raise ValueError(
                f"ModelSummary(max_depth={max_depth!r}) must be -1 (all layers), 0 (none) or more"
            )
        self._model = model
        self._max_depth = max_depth
        self._flops = FlopCounterMode(display=False, depth=max_depth + 1)
        self._layers = self.summarize()

    @property
    def _example(self) -> Any:
        return getattr(self._model, "example_input_array", None)

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """Names and layers that are looked at."""
        if self._max_depth == 0:
            return []
        if self._max_depth == 1:
            return list(self._model.named_children())
        return list(self._model.named_modules())[1:]

    def summarize(self) -> "OrderedDict[str, LayerSummary]":
        """Look at the layers."""
        layers = OrderedDict((name, LayerSummary(layer)) for name, layer in self.named_modules)
        if self._example is not None:
            self._run()
        for layer in layers.values():
            layer.detach_hook()
        if self._max_depth >= 1:
            for name in [name for name in layers if name.count(".") >= self._max_depth]:
                del layers[name]
        return layers

    def _run(self) -> None:
        model = self._model
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        given = _moved(self._example, device)
        modes = [(layer, layer.training) for layer in model.modules()]
        model.eval()
        try:
            with torch.no_grad(), self._flops:
                if isinstance(given, dict):
                    model(**given)
                elif isinstance(given, list | tuple):
                    model(*given)
                else:
                    model(given)
        finally:
            for layer, training in modes:
                layer.training = training

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers."""
        return list(self._layers)

    @property
    def layer_types(self) -> list[str]:
        """Their classes."""
        return [layer.layer_type for layer in self._layers.values()]

    @property
    def in_sizes(self) -> list[Any]:
        """Shapes that go in."""
        return [layer.in_size for layer in self._layers.values()]

    @property
    def out_sizes(self) -> list[Any]:
        """Shapes that come out."""
        return [layer.out_size for layer in self._layers.values()]

    @property
    def param_nums(self) -> list[int]:
        """Numbers in the parameters of each layer."""
        return [layer.num_parameters for layer in self._layers.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each layer is in training mode."""
        return [layer.training for layer in self._layers.values()]

    @property
    def total_training_modes(self) -> dict[str, int]:
        """How many modules, the model itself aside, are in training mode and how many are not."""
        modes = [layer.training for layer in self._model.modules()][1:]
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_parameters(self) -> int:
        """Numbers in all parameters."""
        return _count(self._model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """Numbers in the parameters that are trained."""
        return _count(p for p in self._model.parameters() if p.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """Numbers in the parameters of the layers that are listed."""
        return sum(self.param_nums)

    @property
    def model_size(self) -> float:
        """Megabytes of the parameters, in the trainer's precision."""
        trainer = vars(self._model).get("_trainer")
        precision = None if trainer is None else str(getattr(trainer, "precision", ""))
        return self.total_parameters * _BYTES.get(precision or "", 4) * 1e-6

    @property
    def total_flops(self) -> int:
        """Operations of the example's forward pass."""
        return int(self._flops.get_total_flops())

    @property
    def flop_counts(self) -> dict[str, dict[Any, int]]:
        """The same by layer and kind of operation."""
        counts = self._flops.get_flop_counts()
        root = type(self._model).__name__
        return {name: counts.get(f"{root}.{name}", {}) for name in self.layer_names}

    def columns(self) -> list[tuple[str, list[str]]]:
        """Titles and texts of the table's columns."""
        flops = [get_human_readable_count(sum(f.values())) for f in self.flop_counts.values()]
        columns = [
            (" ", [str(number) for number in range(len(self._layers))]),
            ("Name", self.layer_names),
            ("Type", self.layer_types),
            ("Params", [get_human_readable_count(count) for count in self.param_nums]),
            ("Mode", ["train" if training else "eval" for training in self.training_modes]),
            ("FLOPs", flops),
        ]
        if self._example is not None:
            columns.append(("In sizes", [str(size) for size in self.in_sizes]))
            columns.append(("Out sizes", [str(size) for size in self.out_sizes]))
        rest = self.total_parameters - self.total_layer_params
        if rest > 0:
            own = {" ": " ", "Name": "other params", "Params": get_human_readable_count(rest)}
            for title, column in columns:
                column.append(own.get(title, "n/a"))
        return columns

    def __str__(self) -> str:
        return table(
            self.columns(),
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
        )

    __repr__ = __str__


def table(
    columns: Sequence[tuple[str, list[str]]],
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    modes: Mapping[str, int],
    flops: int,
) -> str:
    """The table as text, with the sums below it."""
    widths = [max(map(len, (title, *column))) for title, column in columns]
    rows = zip(*([title, *column] for title, column in columns), strict=True)
    header, *body = (
        " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    line = "-" * (sum(widths) + 3 * (len(widths) + 1))
    sums = totals(total_parameters, trainable_parameters, model_size, modes, flops)
    return "\n".join([header, line, *body, line, *(f"{a:<10}{b}" for a, b in sums)])


def totals(
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    modes: Mapping[str, int],
    flops: int,
) -> list[tuple[str, str]]:
    """The sums below the table: figure and words."""
    fixed = total_parameters - trainable_parameters
    return [
        (get_human_readable_count(trainable_parameters), "Trainable params"),
        (get_human_readable_count(fixed), "Non-trainable params"),
        (get_human_readable_count(total_parameters), "Total params"),
        (get_formatted_model_size(model_size), "Total estimated model params size (MB)"),
        (str(modes["train"]), "Modules in train mode"),
        (str(modes["eval"]), "Modules in eval mode"),
        (get_human_readable_count(flops), "Total Flops"),
    ]


def _moved(value: Any, device: torch.device) -> Any:
    """An example on the device of the model."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def summarize(lightning_module: Any, max_depth: int = 1) -> ModelSummary:
    """The summary of a model."""
    return ModelSummary(lightning_module, max_depth=max_depth)


def parse_batch_shape(batch: Any) -> str | list[Any]:
    """The shape of a tensor, or of each in a list; ``?`` for anything else."""
    if hasattr(batch, "shape"):
        return list(batch.shape)
    if isinstance(batch, list | tuple):
        return [parse_batch_shape(item) for item in batch]
    return _UNKNOWN


def get_formatted_model_size(total_model_size: float) -> str:
    """Megabytes with three decimals."""
    return f"{total_model_size:,.3f}"


def get_human_readable_count(number: int) -> str:
    """A count in thousands, millions, ...: ``1.2 K``."""
    if number < 0:
        raise ValueError(f"get_human_readable_count({number!r}): a count is not below 0")
    group = min((len(str(int(number))) - 1) // 3, len(_UNITS) - 1)
    scaled = number / 1000**group
    text = f"{int(scaled):,d}" if group == 0 or scaled >= 100 else f"{scaled:,.1f}"
    return f"{text} {_UNITS[group]}"


def measure_flops(
    model: nn.Module,
    forward_fn: Callable[[], torch.Tensor],
    loss_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> int:
    """Operations of a forward pass, and of the backward pass where there is a `loss_fn`.

    On a model of ``torch.device("meta")`` nothing is computed.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())
