"""`RekindlePlugin`: checkpoints of a Rekindle run by their URI, in every entry point of Lightning.

Lightning asks one object, the `CheckpointIO`, to read whatever ``ckpt_path=`` names. This one reads
runs in a store (a URI, or a directory that holds a run), where it takes the newest commit that is
whole, and leaves files to Lightning's own: a script may go on writing and reading ``.ckpt`` files
with `ModelCheckpoint`. It never writes into a run: that takes all ranks and belongs to the
callback.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import TorchCheckpointIO

from rekindle.bridge.state import checkpoint
from rekindle.checkpoint import Store


class RekindlePlugin(TorchCheckpointIO):
    """Reads runs of a Rekindle store as well as Lightning's files."""

    def __init__(self, *, store: dict[str, str] | None = None) -> None:
        """`store`: how an ``s3://`` root is reached, as in `rekindle.Trainer`."""
        super().__init__()
        self._options = dict(store or {})

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The newest good commit of a run, or the content of a file."""
        uri = _run_uri(str(path))
        if uri is None:
            if map_location is None:
                return super().load_checkpoint(path, weights_only=weights_only)
            return super().load_checkpoint(path, map_location, weights_only)
        found = Store.open(uri, **self._options).restore()
        if found is None:
            raise FileNotFoundError(f"ckpt_path={str(path)!r}: this run has no checkpoint yet")
        restored, _ = found
        if not isinstance(restored.state, dict) or "lightning" not in restored.state:
            raise ValueError(
                f"ckpt_path={str(path)!r} is a run of rekindle.Trainer, which has no Lightning "
                f"state; a module's weights come from rekindle.Module.load_from_checkpoint"
            )
        return checkpoint(restored.state)


def _run_uri(path: str) -> str | None:
    """The URI of a run, None for what is a file of Lightning's."""
    if path.endswith(".ckpt"):
        return None
    if "://" in path:
        return path
    return Path(path).absolute().as_uri() if (Path(path) / "commit").is_dir() else None
