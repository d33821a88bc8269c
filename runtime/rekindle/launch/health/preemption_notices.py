"""Notices of platforms that Kubernetes knows nothing of: by a file, or by an HTTP call.

A script of a batch system, a sidecar that asks a cloud's metadata service, or a person who wants a
machine back say the same as SIGTERM does: this pod has to go. The file is for whoever shares a
volume with the container; the call, ``POST /v1/notice`` on the port of ``/metrics``, for whoever
knows the job's token. Both may carry ``{"seconds": 90, "reason": "rack 7 is moved"}``; without
seconds it is the pod's grace.

Ending a pod's training is not for everybody who can reach its metrics. With an operator the call
needs the token of the job's secret, as the coordinator does; without one there is no token, and
only the machine itself is heard.
"""

import hmac
import ipaddress
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rekindle import api, threads

logger = logging.getLogger(__name__)

DEFAULT_FILE = Path("/var/run/rekindle/notice")
"""Where a notice is looked for unless REKINDLE_NOTICE_FILE names another file."""
POLL = 0.25
"""Seconds between two looks at the file; on some kinds of volume nothing tells of a change."""
PATIENCE = 4
"""Looks after which a file that cannot be understood counts, too; it may have been half written."""
MAX_BODY = 4096
"""Bytes of a notice; more is refused."""
PATH = "/v1/notice"
"""Of the HTTP call."""


@dataclass(frozen=True, kw_only=True)
class NoticeRequest:
    """What a notice says."""

    seconds: float | None = None
    """Until the end, from now; None when it does not say."""
    reason: str = ""


class Refusal(Exception):
    """An HTTP call that is not obeyed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def notice_file(environment: Mapping[str, str]) -> Path:
    """Give the file that is looked for."""
    return Path(environment.get(api.ENV_NOTICE_FILE) or DEFAULT_FILE)


def parse(text: str) -> NoticeRequest:
    """Read a notice; raises ValueError saying what is allowed. Nothing at all is a notice, too."""
    if not text.strip():
        return NoticeRequest()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f'must be empty or JSON such as {{"seconds": 90}}: {error}') from error
    if not isinstance(document, dict):
        raise ValueError('must be a JSON object such as {"seconds": 90, "reason": "..."}')
    seconds, reason = document.get("seconds"), document.get("reason", "")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and math.isfinite(seconds) and 0 <= seconds <= 86400):
        raise ValueError(f"seconds is {seconds!r}, must be a number from 0 to 86400")
    if not isinstance(reason, str):
        raise ValueError(f"reason is {reason!r}, must be a text")
    return NoticeRequest(seconds=None if seconds is None else float(seconds), reason=reason[:200])


def watch(path: Path, tell: Callable[[str, float | None], None]) -> threading.Thread:
    """Wait for the file in a daemon thread, which ends with the first notice."""

    def look() -> None:
        tries = 0
        pause = threading.Event()
        while True:
            notice = _read(path, tries)
            if notice is not None:
                tell(_words("file", notice), notice.seconds)
                return
            # Not path.exists(), which raises where a directory on the way may not be entered.
            tries = tries + 1 if os.path.exists(path) else 0
            pause.wait(POLL)

    return threads.lasting(look, name="notices")


def _read(path: Path, tries: int) -> NoticeRequest | None:
    """Read the file, which has been seen so many times before; None while it is no notice."""
    try:
        text = path.read_text(errors="replace")[:MAX_BODY]
        # At first sight, somebody may be about to write into an empty file how much time is left.
        return parse(text) if text.strip() or tries else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if tries < PATIENCE:
            return None
        logger.warning("%s is there and says that this pod has to go, but %s", path, error)
        return NoticeRequest()


def admit(*, token: str, shown: str | None, peer: str) -> None:
    """Let an HTTP call in, or raise `Refusal`; ``shown`` is its Authorization header."""
    if token:
        given = (shown or "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
            raise Refusal(401, "a notice needs Authorization: Bearer with the token of the job")
        return
    address = ipaddress.ip_address(peer)
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_loopback:
        raise Refusal(403, "this pod has no token, so notices are taken from itself only")


def take(body: bytes, tell: Callable[[str, float | None], None]) -> NoticeRequest:
    """Obey an HTTP call that was let in; raises `Refusal` when its body is not understood."""
    try:
        notice = parse(body.decode())
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    tell(_words("HTTP call", notice), notice.seconds)
    return notice


def _words(source: str, notice: NoticeRequest) -> str:
    return f"{source}: {notice.reason}" if notice.reason else source
