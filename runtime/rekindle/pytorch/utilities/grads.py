"""Norms of gradients, by parameter."""

import torch
from torch import nn


def grad_norm(
    module: nn.Module, norm_type: float | str, group_separator: str = "/"
) -> dict[str, torch.Tensor]:
    """The p-norm of each parameter's gradient, and that of all of them as one vector.

    For `log_dict` in `on_before_optimizer_step`: names are ``grad_2.0_norm/layer.weight`` and
    ``grad_2.0_norm_total``. Parameters without a gradient are left out.
    """
    p = float(norm_type)
    if not p > 0:
        raise ValueError(f"grad_norm(norm_type={norm_type!r}) must be a number above 0, or 'inf'")
    norms = {
        f"grad_{p}_norm{group_separator}{name}": torch.linalg.vector_norm(
            parameter.grad.detach(), p
        )
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        each = torch.stack([norm.float() for norm in norms.values()])
        norms[f"grad_{p}_norm_total"] = torch.linalg.vector_norm(each, p)
    return norms
