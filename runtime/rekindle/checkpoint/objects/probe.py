"""The R5 check: can this run write checkpoints here, and would they be safe?

It does what a save does, on a small scale and before any training: a conditional create, a read
back, the same create again, which *must* fail, an upload in parts that is abandoned, a listing and
a delete. The second create is the important one. Some servers ignore `If-None-Match`; with them two
attempts could both believe that they own a step, and nothing would ever complain.
"""

import contextlib
import secrets
import time

from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    Conflict,
    Objects,
    PreconditionFailed,
    RequestRefused,
    StoreError,
    Unreachable,
)

PROBE_SECONDS = 20.0
"""After this long no further step of the probe is begun."""


class ProbeError(StoreError):
    """Checkpoints cannot be written, or would not be safe (R5); nothing has been started."""


def probe(objects: Objects, attempt: str) -> None:
    """Run the check; raises `ProbeError` with the reason, and removes what it wrote."""
    quick = objects.impatient()
    # Unique, so that what a killed probe of the same attempt left behind is not mistaken for ours.
    key = f".probe/{attempt}-{secrets.token_hex(4)}"
    deadline = time.monotonic() + PROBE_SECONDS
    content = secrets.token_bytes(64)
    try:
        try:
            _run(quick, key, content, deadline)
        except Unreachable:
            raise  # cleaning up would only wait for the same silence again
        except StoreError:
            # Without permission to delete, this fails too; the first error is the one to report.
            with contextlib.suppress(StoreError):
                quick.delete(key)
            raise
    except ProbeError:
        raise
    except StoreError as error:
        raise ProbeError(
            f"R5 cannot write checkpoints to {objects.uri}: {error} Training was not started."
        ) from error


def _run(quick: Objects, key: str, content: bytes, deadline: float) -> None:
    try:
        quick.put(key, content, if_none_match=True)
    except RequestRefused as error:
        quick.put(key, content)  # if this is refused as well, the condition was not the reason
        raise _unconditional(quick, "does not support") from error
    _in_time(quick, deadline)
    if quick.get(key, limit=4096) != content:
        raise ProbeError(
            f"R5 {quick.uri} returned other bytes than were written (endpoint {quick.endpoint}). "
            f"Checkpoints would be damaged; use another store. Training was not started."
        )
    _in_time(quick, deadline)
    try:
        quick.put(key, content, if_none_match=True)
    except (PreconditionFailed, Conflict):
        pass
    else:
        raise _unconditional(quick, "ignored")
    _in_time(quick, deadline)
    listed = next((stat for stat in quick.list(".probe/") if stat.key == key), None)
    if listed is None:
        raise ProbeError(
            f"R5 {quick.uri} does not list an object that was just written (endpoint "
            f"{quick.endpoint}). Use a store with consistent listings. Training was not started."
        )
    _in_time(quick, deadline)
    quick.try_upload(f"{key}.parts")
    _in_time(quick, deadline)
    try:
        # As retention does it: if the object is still the one that was listed.
        quick.delete(key, if_match=listed.etag)
        _in_time(quick, deadline)
        if any(stat.key == key for stat in quick.list(".probe/")):
            raise RequestRefused(f"DeleteObject {quick.uri}/{key}: it was answered, but not done.")
    except (AccessDenied, PreconditionFailed, RequestRefused) as error:
        raise ProbeError(
            f"R5 cannot remove old checkpoints from {quick.uri}: {error} Training was not started."
        ) from error


def _unconditional(quick: Objects, what: str) -> ProbeError:
    return ProbeError(
        f"R5 endpoint {quick.endpoint} {what} If-None-Match; commits would not be atomic. Use a "
        f"store with conditional writes or set store.commit='lease', which is weaker (in a script "
        f"Trainer(store={{'commit': 'lease'}}), in a manifest spec.checkpoint.commit: lease). "
        f"Training was not started."
    )


def _in_time(quick: Objects, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Unreachable(
            f"{quick.uri} answers too slowly: the check took over {PROBE_SECONDS:.0f} s. Check "
            f"{quick.endpoint} and the network."
        )
