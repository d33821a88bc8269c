"""`rekindle checkpoints import`: the files of other tools, read in a process of their own.

Reading them needs torch, which the command itself does without, and the files are not trusted: what
they can do at worst, to use up memory, then happens to a process that does nothing else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rekindle_cli import places
from rekindle_cli.output.failure import CommandFailure


def load(source: str, uri: str, *, step: int | None, options: Mapping[str, str]) -> dict[str, Any]:
    """Import a file or directory as a checkpoint; raises Failure with the reason."""
    if not os.path.exists(source):
        raise CommandFailure(f"{source}: there is no such file or directory.", reason="NotFound")
    command = [sys.executable, "-m", "rekindle.interop.importing", source, uri]
    command += ["--options", json.dumps(dict(options))]
    if step is not None:
        command += ["--step", str(step)]
    path = [*places.python_path(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return answer(done.returncode, done.stdout, done.stderr)


def answer(code: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """What the process said; raises Failure when it is a refusal or no answer."""
    lines: Sequence[str] = stdout.decode(errors="replace").strip().splitlines()
    try:
        found = json.loads(lines[-1])
        if not isinstance(found, dict):
            raise ValueError(found)
    except (IndexError, ValueError):
        words = stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CommandFailure(
            f"The import ended with exit code {code} and without an answer.",
            "If it is -9, the file needs more memory than there is.",
            facts=words,
        ) from None
    if "error" in found:
        raise CommandFailure(str(found["error"]))
    return found
