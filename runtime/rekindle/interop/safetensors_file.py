"""A model's tensors as one safetensors file, for programs that know nothing of Rekindle.

The header is the one that shards of checkpoints have, so there is one place that knows the format.
"""

import os
from collections.abc import Mapping

import torch

from rekindle.checkpoint import Store
from rekindle.checkpoint.format import packing
from rekindle.checkpoint.format.layout import Piece
from rekindle.checkpoint.format.tensors import as_bytes, dtype_name
from rekindle.checkpoint.resolving import jobs_options, whole


def write(tensors: Mapping[str, torch.Tensor], uri: str) -> None:
    """Write the file, whole or not at all; `uri` is a path or an ``s3://`` URL."""
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    held = [
        packing.LocalShard(
            name=name, dtype=dtype_name(one), shape=tuple(one.shape), nbytes=one.nbytes
        )
        for name, one in host.items()
    ]
    pieces = [Piece(tensor=n, start=0, stop=one.nbytes) for n, one in enumerate(held)]
    (plan,) = packing.plan([pieces], held)
    body = plan.header + b"".join(as_bytes(one).numpy().tobytes() for one in host.values())
    where = whole(uri).removeprefix("file://")
    if "://" in where:
        folder, _, name = where.rpartition("/")
        Store.open(folder, **jobs_options()).objects.put(name, body)
        return
    unfinished = f"{where}.unfinished"
    with open(unfinished, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, where)
