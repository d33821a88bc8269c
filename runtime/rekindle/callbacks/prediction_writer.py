"""`PredictionWriter`: what `predict` gives, on disk, in the order of the data, and resumable.

Each batch becomes one file, named by its number over all ranks, so the order of the names is the
order of the data whoever wrote them. A file appears under its name only when it is complete. A
`predict` that was interrupted goes on where it stopped, on any number of processes: batches whose
file exists, for the same samples and the same weights, are not computed again. Files hold arrays
and plain values, never code.

Processes that compute together (a sharded model) have to leave out the same rounds. So rank 0 says
what exists, and a round is left out only as a whole; the folder is one that all processes see.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rekindle.callback import Callback

if TYPE_CHECKING:
    from rekindle.model.module import Module
    from rekindle.trainer.trainer import Trainer

_NAME = re.compile(r"^(\d{8})\.npz$")
_ABOUT = "predictions.json"


class PredictionWriter(Callback):
    """Write the output of each batch of `Trainer.predict` to a folder of its own."""

    # What it has is on disk.
    optional = True

    def __init__(self, output_dir: "str | os.PathLike[str]", overwrite: bool = False) -> None:
        """`overwrite` begins again in a folder that holds predictions of other weights."""
        if "://" in os.fspath(output_dir):
            raise ValueError(
                f"PredictionWriter({os.fspath(output_dir)!r}): write to a folder, and copy it "
                f"where you want it"
            )
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self._done: frozenset[int] = frozenset()
        self._ids: list[int] = []
        self._size = 1

    def on_predict_start(self, trainer: "Trainer", pl_module: "Module") -> None:
        """See what is there; ValueError when it is of other weights. Collective."""
        assert trainer.world is not None
        world, about = trainer.world, {"version": 1, "model": _digest(pl_module)}
        error, done = None, frozenset[int]()
        if world.first:
            try:
                done = self._prepare(about)
            except Exception as failure:
                error = failure
        world.agree(error)
        self._done, self._size = world.share(done), world.size
        if self._done:
            trainer.print(f"{len(self._done)} batches are predicted already, in {self.output_dir}")

    def _prepare(self, about: dict[str, Any]) -> frozenset[int]:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / _ABOUT
        if path.exists() and json.loads(path.read_text()) != about:
            if not self.overwrite:
                raise ValueError(
                    f"{self.output_dir} holds predictions of other weights; choose another folder, "
                    f"or set overwrite=True"
                )
            path.unlink()
        if not path.exists():
            for _, old in _files(self.output_dir):
                old.unlink()
            _replace(path, json.dumps(about).encode())
        return frozenset(number for number, _ in _files(self.output_dir))

    def predicted(self, batch_idx: int, ids: Any) -> tuple[Any] | None:
        """What is on disk for this batch, if the whole round is."""
        self._ids = [int(one) for one in ids]
        first = batch_idx - batch_idx % self._size
        if not self._done.issuperset(range(first, first + self._size)):
            return None
        kept, output = _read(self.output_dir / f"{batch_idx:08d}.npz")
        return (output,) if kept == self._ids else None

    def on_predict_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Module",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one file; TypeError for an output that is no nest of tensors and plain values."""
        arrays: dict[str, Any] = {}
        tree = _encode(outputs, arrays)
        plain = json.dumps({"ids": self._ids, "tree": tree}).encode()
        arrays["tree"] = np.frombuffer(plain, dtype=np.uint8)
        temporary = self.output_dir / f".{batch_idx:08d}.{os.getpid()}"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(self.output_dir / f"{batch_idx:08d}.npz")

    @staticmethod
    def read(output_dir: "str | os.PathLike[str]") -> Iterator[tuple[list[int], Any]]:
        """The sample ids and the output of each batch, in the order of the data."""
        for _, path in sorted(_files(Path(output_dir))):
            yield _read(path)


def _files(directory: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.match(path.name), path) for path in directory.iterdir()]
    return [(int(match[1]), path) for match, path in found if match is not None]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _read(path: Path) -> tuple[list[int], Any]:
    with np.load(path, allow_pickle=False) as arrays:
        document = json.loads(arrays["tree"].tobytes())
        return document["ids"], _decode(document["tree"], arrays)


def _encode(value: Any, arrays: dict[str, Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if isinstance(value, torch.Tensor):
        name, tensor = f"a{len(arrays)}", value.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            # NumPy has no such type; the bits are kept.
            arrays[name] = tensor.view(torch.int16).numpy()
            return {"array": name, "dtype": "bfloat16"}
        arrays[name] = tensor.numpy()
        return {"array": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("predict_step returned a mapping with keys that are no strings")
        return {"dict": {key: _encode(item, arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, arrays) for item in value]}
    raise TypeError(
        f"predict_step returned a {type(value).__name__}; PredictionWriter stores tensors, "
        f"numbers, texts, and dicts, lists and tuples of them"
    )


def _decode(tree: Any, arrays: Any) -> Any:
    if "plain" in tree:
        return tree["plain"]
    if "array" in tree:
        tensor = torch.from_numpy(arrays[tree["array"]])
        return tensor.view(torch.bfloat16) if tree.get("dtype") == "bfloat16" else tensor
    if "dict" in tree:
        return {key: _decode(item, arrays) for key, item in tree["dict"].items()}
    items = [_decode(item, arrays) for item in tree.get("tuple", tree.get("list"))]
    return tuple(items) if "tuple" in tree else items


def _digest(module: torch.nn.Module) -> str:
    """Which weights these are: names, shapes and sums, with one wait for the device."""
    state = {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    sums = []
    for tensor in state.values():
        weights = torch.arange(1, tensor.numel() + 1, device=tensor.device, dtype=torch.float64)
        total = (tensor.detach().double().reshape(-1) * weights).sum()
        whole = getattr(total, "full_tensor", None)
        sums.append(total if whole is None else whole())
    text = repr([(name, tuple(tensor.shape)) for name, tensor in state.items()])
    numbers = torch.stack(sums).tolist() if sums else []
    return hashlib.sha256(f"{text}{numbers}".encode()).hexdigest()[:16]
