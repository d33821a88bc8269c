"""One rank of one stage: build a sharded or replicated model, load, compare, save.

Run by runpy with RANK, WORLD_SIZE, PORT, OUT and STAGE among its globals.
"""

import hashlib
import json
import os

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from rekindle.checkpoint import Saver, Store

READS = []


class Counting:
    """Counts the bytes that this rank reads of shard objects."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_into(self, key, buffer, start=0):
        READS.append(len(buffer))
        return self.inner.get_into(key, buffer, start)


def build(strategy, world_size):
    torch.manual_seed(world_size)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
    if strategy == "fsdp":
        fully_shard(model)
    elif strategy == "columns":
        fully_shard(model, shard_placement_fn=lambda p: Shard(1) if p.dim() == 2 else Shard(0))
    elif strategy == "hybrid":
        mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("copies", "shards"))
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    return model, optimizer


def state_of(model, optimizer):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def digest(tree):
    sha = hashlib.sha256()

    def visit(value, path):
        if isinstance(value, dict):
            for key in sorted(value):
                visit(value[key], f"{path}.{key}")
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            sha.update(path.encode() + whole.detach().contiguous().numpy().tobytes())

    visit(tree, "")
    return sha.hexdigest()


def main(rank, world_size, port, out, stage):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    store = Store.open(stage["uri"])
    store.objects = Counting(store.objects)
    store.origin = None
    model, optimizer = build(stage["strategy"], world_size)
    base, loaded = None, None
    if stage["step"] > 1:
        base = store.commits()[0]
        group = dist.group.WORLD if stage["shared"] else None
        store.load(store.read(base), into=state_of(model, optimizer), group=group)
        loaded = digest(state_of(model, optimizer))
    fence = [store.acquire(owner="test").fence if rank == 0 else 0]
    dist.broadcast_object_list(fence)
    saver = Saver(
        store, lease_fence=fence[0], base=base, rank=rank, world_size=world_size, chunk_bytes=64
    )
    state = state_of(model, optimizer)
    saver.save(stage["step"], state, rank_state={"rank": rank}, wait=True)
    saver.close()
    result = {"loaded": loaded, "saved": digest(state), "read": sum(READS)}
    with open(out, "w") as file:
        json.dump(result, file)
    dist.destroy_process_group()


main(RANK, WORLD_SIZE, PORT, OUT, STAGE)  # noqa: F821
