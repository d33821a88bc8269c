"""A Python with torch and what torch needs, and nothing else: an image without Rekindle."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path


def distributions(name: str, seen: set[str]) -> set[str]:
    """A distribution and all that it needs here."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return seen
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for each in requires:
        if "extra ==" not in each and not name.startswith("nvidia"):
            distributions(re.match(r"[\w.-]+", each)[0], seen)
    return seen


def make(root: Path) -> Path:
    """Make a virtual environment in a folder; gives its Python."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(root)], check=True, timeout=60
    )
    (packages,) = (root / "lib").glob("python*/site-packages")
    for name in distributions("torch", set()):
        found = importlib.metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in found.files or ()}:
            place = Path(str(found.locate_file(top)))
            shared = (packages / top).exists()  # the folder of several, `nvidia` for example
            if top not in {"..", "__pycache__"} and place.exists() and not shared:
                (packages / top).symlink_to(place)
    return root / "bin" / "python"
