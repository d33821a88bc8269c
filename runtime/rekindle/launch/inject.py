"""``python -m rekindle.launch.inject DIRECTORY``: brings the launcher into an image without it.

An init container with our image runs this; the trainer's container, with an image of its own, has
the directory on PYTHONPATH. The whole package is copied, as it is pure Python and small; what of it
needs more than torch says so when it is used. With it goes the entry point by which a torchrun
finds us, and no other: what Lightning would load needs more than this image may have.

Each file is whole before anybody sees it: the package is copied beside its place and renamed. An
init container that runs again replaces what is there.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import rekindle

ENTRY_POINTS = "[torchrun.handlers]\nrekindle = rekindle.launch.agent.backend:get_handler\n"
_METADATA = "Metadata-Version: 2.1\nName: rekindle\nVersion: 0\n"


def inject(target: Path) -> None:
    """Copy this package to ``target/rekindle``; raises OSError."""
    target.mkdir(parents=True, exist_ok=True)
    source = Path(rekindle.__file__).parent
    # In the target itself: a rename reaches no other file system.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target) as temporary:
        new = Path(temporary)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, new / "rekindle", ignore=ignored)
        info = new / "rekindle-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(_METADATA)
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        for path in (new / "rekindle", info):
            _readable(path)
            place = target / path.name
            if place.exists():
                place.rename(new / f"old-{path.name}")
            path.rename(place)


def _readable(path: Path) -> None:
    """Have everybody read it: the trainer may run as another user."""
    for folder, _, files in os.walk(path):
        os.chmod(folder, 0o755)
        for name in files:
            os.chmod(Path(folder) / name, 0o644)


def main(arguments: list[str]) -> int:
    """Run the command; gives its exit code."""
    if len(arguments) != 1:
        print("usage: python -m rekindle.launch.inject DIRECTORY", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    try:
        inject(target)
    except OSError as error:
        print(f"cannot copy the launcher to {target}: {error}", file=sys.stderr)
        return 1
    print(f"the launcher is in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
