"""Files of other tools as a checkpoint: ``python -m rekindle.interop.importing SOURCE URI``.

Lightning's `.ckpt`, anything that `torch.save` wrote, and DCP directories become one checkpoint of
an empty store. They are pickles, and a pickle is a program; it is read with `weights_only=True`,
whose interpreter knows tensors and plain containers and nothing else. There is no switch to trust a
file. What would need code to be read is refused with its name and the way out, which is to save it
again where it is trusted.

The weights come to lie in `model`; what else the file held stays beside them under its own names.
This is a process of its own: see the command `rekindle checkpoints import`. It prints one JSON
object, with `error` if there is one.
"""

import argparse
import io
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import torch

from rekindle.checkpoint import EncodingError, InvalidLocation, SaveError, Saver, Store, StoreError
from rekindle.interop import dcp
from rekindle.interop.lightning_file import OWN, FileRefused, load


def read(source: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What the source is, its state, and meta; raises `FileRefused`."""
    try:
        if os.path.isdir(source):
            if not dcp.is_dcp(source):
                raise FileRefused(
                    f"{source} is a directory without .metadata, so not one of DCP's."
                )
            return "DCP", *_arrange(dcp.load(source, _stream))
        return _file(source)
    except dcp.DcpRefused as error:
        raise FileRefused(f"{source} was refused: {error}.") from None
    except OSError as error:
        raise FileRefused(f"cannot read {error.filename or source}: {error.strerror}.") from None


def _file(source: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    with open(source, "rb") as file:
        if file.read(8)[1:8] == b"\x00\x00\x00\x00\x00\x00\x00" or source.endswith(".safetensors"):
            raise FileRefused(f"{source} is a safetensors file; load it and save it with a Saver.")
    value = load(source, source)
    lightning = isinstance(value, dict) and "pytorch-lightning_version" in value
    return ("Lightning" if lightning else "torch.save"), *_arrange(value)


def _stream(stream: io.BytesIO, what: str) -> Any:
    return load(stream, what, mmap=False)


def _arrange(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and meta of what a file held: the weights under `model`, the rest as it was."""
    state: dict[str, Any]
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if key != OWN}
    if not isinstance(value, dict):
        state = {"model": {"value": value}}
    elif "state_dict" in value and "model" not in value:
        state = {"model": value["state_dict"]}
        state |= {str(key): part for key, part in value.items() if key != "state_dict"}
    elif "model" in value:
        state = {str(key): part for key, part in value.items()}
    else:
        state = {"model": dict(value)}
    meta: dict[str, Any] = {}
    for name, key in (("global_step", "step"), ("step", "step"), ("epoch", "epoch")):
        found = state.get(name)
        if type(found) is int and key not in meta:
            meta[key] = found
    return state, meta


def store(
    state: dict[str, Any], meta: dict[str, Any], uri: str, step: int, options: dict[str, str]
) -> None:
    """Make it the first checkpoint of a store; raises `FileRefused` when there are some already."""
    target = Store.open(uri, **options)
    if target.listed():
        raise FileRefused(
            f"{target.uri} holds checkpoints already; import into an empty place, so that no "
            f"running job takes this one for its newest."
        )
    lease = target.acquire(owner=f"import on {socket.gethostname()}")
    saver = Saver(target, lease_fence=lease.fence, base=None, rank=0, world_size=1)
    try:
        saver.save(step, state, meta=meta, wait=True)
    finally:
        saver.close()


def run(source: str, uri: str, step: int | None, options: dict[str, str]) -> dict[str, Any]:
    """Import and say what was done; raises `FileRefused`, `StoreError`, `InvalidLocation`."""
    kind, state, meta = read(source)
    number = step if step is not None else int(meta.get("step", 0))
    meta = {**meta, "step": number, "imported_from": os.path.basename(source.rstrip("/"))}
    try:
        store(state, meta, uri, number, options)
    except EncodingError as error:
        raise FileRefused(f"{source} cannot be stored: {error}") from None
    return {"kind": kind, "step": number, "tensors": _tensors(state), "uri": uri}


def _tensors(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, dict):
        return sum(_tensors(part) for part in value.values())
    return sum(_tensors(part) for part in value) if isinstance(value, (list, tuple)) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object; the exit code is 2 for a refusal."""
    parser = argparse.ArgumentParser(prog="python -m rekindle.interop.importing")
    parser.add_argument("source")
    parser.add_argument("uri")
    parser.add_argument("--step", type=int, default=None)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args(arguments)
    try:
        found = run(given.source, given.uri, given.step, given.options)
    except (FileRefused, StoreError, InvalidLocation, SaveError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
