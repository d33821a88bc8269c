"""`follow`: the checkpoints of a run that trains elsewhere, one after the other.

Validation need not stand in the way of training. A process of its own, on another machine if need
be, takes each checkpoint as it is committed and validates it while training goes on::

    trainer = rk.Trainer(logger=...)
    for uri in rk.follow("s3://bucket/run"):
        trainer.validate(model, data, ckpt_path=uri)

A checkpoint is pinned while it is being worked on, so the retention of the run does not delete it;
the pin has a fixed name, so one that a killed process leaves behind is taken over by the next.
"""

import os
import time
from collections.abc import Iterator, Mapping

from rekindle.checkpoint import IntegrityError, Store
from rekindle.checkpoint.format.manifest import commit_key
from rekindle.checkpoint.objects.interface import NotFound
from rekindle.checkpoint.resolving import whole


def follow(
    root: "str | os.PathLike[str]",
    *,
    poll_seconds: float = 5.0,
    name: str = "following",
    store: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The URI of each new checkpoint of the run at `root`, until that of its end.

    Only the newest one is given: whoever is slower than the run's saves misses some. `name` is that
    of the pin; two processes that follow one run need two names. `store` says how an ``s3://`` root
    is reached, as in `rekindle.Trainer`. The run may begin later than this. The generator ends
    when the run is complete, and waits forever for one that is never finished.
    """
    run = Store.open(whole(root), **dict(store or {}))
    seen = None
    while True:
        newest = next(iter(run.commits()), None)
        if newest is None or newest == seen:
            time.sleep(poll_seconds)
            continue
        seen = newest
        try:
            run.pin(newest, name=name, note="being validated")
            finished = bool(run.read(newest).meta.get("finished"))
        except NotFound:  # deleted since; there is a newer one
            continue
        except IntegrityError:  # for the run itself to tell
            run.unpin(name)
            continue
        try:
            yield f"{run.uri.rstrip('/')}/{commit_key(newest)}"
        finally:
            run.unpin(name)
        if finished:
            return
