"""Where the CRD and the examples are: in the checkout, or packaged beside this module.

An editable install leaves the packaged copies in another folder and possibly stale, so the checkout
is asked first; in a wheel there is no checkout, and the copies are all there is.
"""

from pathlib import Path

import rekindle
from rekindle_cli.output.failure import CommandFailure

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[1]


def crds() -> Path:
    """The folder of the CustomResourceDefinitions; raises Failure if the installation lacks it."""
    return _first("crds", "trainingjob.yaml")


def examples() -> Path | None:
    """The folder of the examples, which the runtime image has as its working directory."""
    try:
        return _first("examples", "digits")
    except CommandFailure:
        return None


def demo_manifest() -> Path:
    """The job of the demo; raises Failure when the installation lacks it."""
    return _first("examples", "digits/job.yaml") / "digits" / "job.yaml"


def python_path() -> list[str]:
    """Folders that a process needs to import the same packages, installed or not."""
    if rekindle.__file__ is None:
        raise RuntimeError("the package rekindle has no file")
    return list(
        dict.fromkeys([str(_HERE.parent), str(Path(rekindle.__file__).resolve().parents[1])])
    )


def _first(name: str, witness: str) -> Path:
    checkout = _CHECKOUT / {"crds": "crds", "examples": "runtime/examples"}[name]
    for folder in (checkout, _HERE / "data" / name):
        if (folder / witness).exists():
            return folder
    raise CommandFailure(
        f"This installation of rekindle lacks {name}/{witness}.",
        "Install it again: pip install --force-reinstall 'rekindle[local]'.",
        reason="NotFound",
    )
