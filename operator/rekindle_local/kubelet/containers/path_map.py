"""Mount paths without mounts: container paths rewritten to where the files are.

Without root nothing can be mounted, so a volume at `/data` is a directory elsewhere and every
place where the pod's own text names `/data` is rewritten: in command, args and env values, alone,
after `=`, `:`, `,`, a quote, or `file://`, whole or as the beginning of a longer path. `/data` in
`s3://bucket/data` or in `/database` is something else and stays. A program that has such a path in
its code cannot be helped; it should take it from its arguments.
"""

import re
from collections.abc import Iterable

_BEFORE = r"""(?:(?<=^)|(?<=[=:,;|\s"'(\[{<>@])|(?<=://))"""
_AFTER = r"""(?=$|[/:,;|\s"')\]}<>?#])"""


class PathMap:
    """Pairs of (path in the container, path on this machine); the longest match wins."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._targets: dict[str, str] = {}
        for inside, outside in pairs:
            self._targets[inside.rstrip("/") or "/"] = outside.rstrip("/")
        ordered = sorted((path for path in self._targets if path != "/"), key=len, reverse=True)
        self._pattern = (
            re.compile(_BEFORE + "(" + "|".join(map(re.escape, ordered)) + ")" + _AFTER)
            if ordered
            else None
        )

    def rewrite(self, text: str) -> str:
        """`text` with every path under a mapped one replaced."""
        if self._pattern is None or "/" not in text:
            return text
        return self._pattern.sub(lambda match: self._targets[match[1]], text)
