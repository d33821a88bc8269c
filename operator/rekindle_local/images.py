"""Images: what a name in `image:` means on this machine.

There is nothing to pull. An image is a working directory, a command and an environment that exist
here already, and a cluster is told which by patterns; a name that no pattern matches fails as a
pull fails, with a message that says how to make it known. `python_image` describes the image every
Python program wants: this interpreter's own environment, with the few variables of the host a
program needs to work at all, and loopback as the network of gloo and NCCL.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

_FROM_HOST = (
    "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "PYTHONPATH", "VIRTUAL_ENV",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Image:
    """What an image would bring along."""

    workdir: Path
    """WORKDIR: where a container starts that names no workingDir."""
    entrypoint: tuple[str, ...] = ()
    """ENTRYPOINT: replaced by a container's `command`."""
    cmd: tuple[str, ...] = ()
    """CMD: replaced by a container's `args`, dropped when it has a `command`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """ENV: a container's own variables win."""
    paths: Mapping[str, Path] = field(default_factory=dict)
    """Directories of the image that lie elsewhere here, as `/workspace` to a checkout: rewritten
    in arguments and variables like mount paths."""


def find_image(images: Mapping[str, Image], name: str) -> Image | None:
    """The image of the first pattern that matches `name`, exact names before patterns."""
    if name in images:
        return images[name]
    return next((image for pattern, image in images.items() if fnmatchcase(name, pattern)), None)


def unknown_image(images: Mapping[str, Image], name: str) -> str:
    """Why `name` cannot be pulled here and what to do about it."""
    known = ", ".join(images) or "none"
    return (
        f'failed to pull image "{name}": this cluster runs containers as processes and knows no '
        f"image that matches. Known patterns: {known}. Use one of them in the pod, or start the "
        f"cluster with a pattern for it (images={{{name!r}: Image(workdir=...)}})"
    )


def python_image(
    workdir: Path,
    *,
    entrypoint: tuple[str, ...] = (),
    cmd: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    paths: Mapping[str, Path] | None = None,
) -> Image:
    """An image around this interpreter: `python` is the one that runs the cluster."""
    # Not resolved: in a virtual environment the executable is a link out of it.
    bin_dir = os.path.dirname(os.path.abspath(sys.executable))
    base = {name: os.environ[name] for name in _FROM_HOST if name in os.environ}
    base["PATH"] = os.pathsep.join([bin_dir, os.environ.get("PATH", os.defpath)])
    base["PYTHONUNBUFFERED"] = "1"
    # Several pods share few cores: one thread per process unless the pod says otherwise.
    base["OMP_NUM_THREADS"] = "1"
    if sys.platform.startswith("linux"):
        # Pods live on 127.x addresses; both libraries skip loopback unless told.
        base["GLOO_SOCKET_IFNAME"] = "lo"
        base["NCCL_SOCKET_IFNAME"] = "lo"
    return Image(
        workdir=workdir,
        entrypoint=entrypoint,
        cmd=cmd,
        env={**base, **(env or {})},
        paths=dict(paths or {}),
    )
