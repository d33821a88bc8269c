"""In a worker: leaves word for the agent as soon as torch's process group is there.

A script that knows nothing of us makes its group by ``torch.distributed.init_process_group``,
itself or through a library. What the workers are forked from puts a function around it, once torch
is imported and before anything of the user's is: it costs one store per group, nothing per step. A
worker that is a fresh interpreter imports torch by itself; its agent goes by time instead.
"""

import contextlib
import functools
import sys
from typing import Any

from rekindle.ranks.control_page import ControlPage


def leave_word() -> None:
    """Put the function there; does nothing without torch, or when it is there already."""
    homes = [sys.modules.get(f"torch.distributed{end}") for end in ("", ".distributed_c10d")]
    original = getattr(homes[0], "init_process_group", None)
    if original is None or hasattr(original, "_rekindle"):
        return

    @functools.wraps(original)
    def init_process_group(*arguments: Any, **named: Any) -> Any:
        made = original(*arguments, **named)
        with contextlib.suppress(OSError, ValueError):
            page = ControlPage.from_environment()
            if page is not None:
                page.formed()
        return made

    init_process_group._rekindle = True  # type: ignore[attr-defined]
    for home in homes:
        if getattr(home, "init_process_group", None) is original:
            home.init_process_group = init_process_group  # type: ignore[union-attr]
