"""Checkpoints that are whole if they exist, on S3 or a file system, usable from any loop.

A `Store` is the root of one run. An attempt first takes a lease, whose number (the fence) orders
attempts; it restores the newest good checkpoint; then every rank has a `Saver`, which copies the
state into host memory, uploads its share in the background and lets rank 0 commit:

>>> import tempfile, torch
>>> from rekindle.checkpoint import Saver, Store
>>> def train(uri, until):
...     model = torch.nn.Linear(4, 2)
...     store = Store.open(uri)  # or s3://bucket/prefix
...     store.probe("attempt-1")  # raises before training if checkpoints could not be written
...     lease = store.acquire(owner="laptop")
...     found = store.restore(rank=0)
...     first, base = 0, None
...     if found is not None:
...         restored, skipped = found  # skipped: damaged ones, and what they cost
...         model.load_state_dict(restored.state["model"])
...         first, base = restored.meta["step"], restored.ref
...     saver = Saver(store, lease_fence=lease.fence, base=base, rank=0, world_size=1)
...     for step in range(first + 1, until + 1):
...         with torch.no_grad():
...             model.weight += 1
...         last = step == until
...         _ = saver.save(step, {"model": model.state_dict()}, meta={"step": step}, wait=last)
...     saver.close()
...     return first, saver.last_commit.step
>>> with tempfile.TemporaryDirectory() as folder:
...     print(train(f"file://{folder}/run", until=3))
...     print(train(f"file://{folder}/run", until=5))
(0, 3)
(3, 5)

With several ranks, rank 0 acquires and broadcasts the fence, and all ranks must load the same
checkpoint: rank 0 picks it from `store.commits()`, the others call `store.load(store.read(ref))`.

Differences from a first sketch of this interface, for those who build on it: `save` returns the
seconds that it held up the caller; `deadline` is a `time.monotonic()` value; `Saver` also takes
`on_error`; `Restored` also has `ref` and `world_size`.

The layers, each pure where it can be: `location` and `objects` (what a store is), `file` and `s3`
(two of them), `checksum`, `encoding`, `layout`, `manifest`, `lineage` (what a checkpoint is,
without torch), `retention`, `cleanup` (what stays), `guarded` (stores without conditions),
`tensors`, `shards`, `loading` (with torch), `probe`, `store`, `saver` (protocol); and what stores a
snapshot beside the training: `snapshot`, `background` and `uploader` (another process), `packing`
and `writer` (what both do), `flush` and `adoption` (what a dead attempt has left), `interval`.
Importing the package imports none of them.
"""

from typing import TYPE_CHECKING

from rekindle.lazy_import import attributes

if TYPE_CHECKING:
    from rekindle.checkpoint.format.encoding import EncodingError as EncodingError
    from rekindle.checkpoint.format.manifest import Commit as Commit
    from rekindle.checkpoint.format.manifest import CommitRef as CommitRef
    from rekindle.checkpoint.format.manifest import IntegrityError as IntegrityError
    from rekindle.checkpoint.format.manifest import VersionError as VersionError
    from rekindle.checkpoint.objects.interface import StoreError as StoreError
    from rekindle.checkpoint.objects.location import InvalidLocation as InvalidLocation
    from rekindle.checkpoint.objects.probe import ProbeError as ProbeError
    from rekindle.checkpoint.retention import Best as Best
    from rekindle.checkpoint.retention import Retention as Retention
    from rekindle.checkpoint.saving.saver import SaveError as SaveError
    from rekindle.checkpoint.saving.saver import Saver as Saver
    from rekindle.checkpoint.saving.saver import SaveTimeout as SaveTimeout
    from rekindle.checkpoint.store import Lease as Lease
    from rekindle.checkpoint.store import LeaseLost as LeaseLost
    from rekindle.checkpoint.store import Restored as Restored
    from rekindle.checkpoint.store import Skipped as Skipped
    from rekindle.checkpoint.store import Store as Store

__all__ = [
    "Best",
    "Commit",
    "CommitRef",
    "EncodingError",
    "IntegrityError",
    "InvalidLocation",
    "Lease",
    "LeaseLost",
    "ProbeError",
    "Restored",
    "Retention",
    "SaveError",
    "SaveTimeout",
    "Saver",
    "Skipped",
    "Store",
    "StoreError",
    "VersionError",
]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "Best": ".retention",
        "Commit": ".format.manifest",
        "CommitRef": ".format.manifest",
        "EncodingError": ".format.encoding",
        "IntegrityError": ".format.manifest",
        "InvalidLocation": ".objects.location",
        "Lease": ".store",
        "LeaseLost": ".store",
        "ProbeError": ".objects.probe",
        "Restored": ".store",
        "Retention": ".retention",
        "SaveError": ".saving.saver",
        "SaveTimeout": ".saving.saver",
        "Saver": ".saving.saver",
        "Skipped": ".store",
        "Store": ".store",
        "StoreError": ".objects.interface",
        "VersionError": ".format.manifest",
    },
)
