"""A module for use without training: frozen, or as a program of its own.

What is exported is the module in evaluation mode, with batches moved to its device; its own mode
comes back afterwards. The formats are torch's, and so are the functions that write them.
"""

import os
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

_scripting: ContextVar[bool] = ContextVar("_scripting", default=False)
"""Whether TorchScript looks at a module, which asks for each of its properties."""


def scripting() -> bool:
    """Whether a module is looked at by TorchScript, which has no use for what it gets."""
    return _scripting.get()


class Exporting(nn.Module):
    """The part of `rekindle.Module` that has to do with inference."""

    example_input_array: Any = None
    """An input of `forward`: what is traced, and what a summary of the layers shows sizes for."""

    def freeze(self) -> Self:
        """Have no parameter require a gradient, and go to evaluation mode."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        return self.eval()

    def unfreeze(self) -> Self:
        """Have all parameters require gradients, and go to training mode."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        return self.train()

    @torch.no_grad()
    def to_torchscript(
        self,
        file_path: "str | os.PathLike[str] | None" = None,
        method: str | None = "script",
        example_inputs: Any = None,
        **options: Any,
    ) -> Any:
        """The module as TorchScript, by ``script`` or ``trace``; also saved, if a path is given.

        `options` are those of `torch.jit.script` or `torch.jit.trace`.
        """
        if method not in ("script", "trace"):
            raise ValueError(
                f"to_torchscript(method={method!r}): 'method' parameter is 'script' or 'trace'"
            )
        mode, token = self.training, _scripting.set(True)
        try:
            if method == "script":
                found: Any = torch.jit.script(self.eval(), **options)
            else:
                inputs = self._example(example_inputs, "to_torchscript", "example_inputs")
                trace: Any = torch.jit.trace
                found = trace(self.eval(), inputs, **options)
        finally:
            _scripting.reset(token)
            self.train(mode)
        if file_path is not None:
            torch.jit.save(found, os.fspath(file_path))
        return found

    @torch.no_grad()
    def to_onnx(self, file_path: Any = None, input_sample: Any = None, **options: Any) -> Any:
        """Write the module as ONNX, which needs the package onnx; `options` are torch's."""
        if find_spec("onnx") is None:
            raise ModuleNotFoundError(
                f"{type(self).__name__}.to_onnx() requires `onnx` to be installed: pip install "
                f"onnx onnxscript",
                name="onnx",
            )
        mode = self.training
        sample = self._example(input_sample, "to_onnx", "input_sample")
        if isinstance(file_path, os.PathLike):
            file_path = os.fspath(file_path)
        try:
            return torch.onnx.export(self, sample, file_path, **options)
        finally:
            self.train(mode)

    def to_tensorrt(self, *arguments: Any, **options: Any) -> Any:
        """Refused: torch_tensorrt compiles a module by itself."""
        raise NotImplementedError(
            f"{type(self).__name__}.to_tensorrt is not supported: call torch_tensorrt.compile("
            f"model.eval(), inputs=[...]) and torch_tensorrt.save"
        )

    def _example(self, given: Any, call: str, name: str) -> Any:
        """An input on the module's device."""
        found = self.example_input_array if given is None else given
        if found is None:
            raise ValueError(
                f"{type(self).__name__}.{call}() needs an input to follow: give {name}=, or set "
                f"`example_input_array` in the module"
            )
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), found)
