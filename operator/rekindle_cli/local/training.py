"""`rekindle fit` and its like: this process becomes the one that trains.

Training needs torch and the user's modules, which the command itself never loads. So the command
line is handed over unread to ``python -m rekindle``, in the same environment and folder; exit code
and signals are those of the training.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rekindle_cli import places


def hand_over(verb: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process; does not return."""
    path = [*places.python_path(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "rekindle", verb, *arguments]
    os.execve(sys.executable, command, environment)
