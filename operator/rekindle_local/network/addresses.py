"""Addresses of nodes and pods out of 127.0.0.0/8.

On Linux every address of that block belongs to the loopback interface without any set-up, so each
pod can bind its own `$(POD_IP):port` without root and without meeting another pod. One cluster
claims a /16 (it listens on one port of the last address, so a second cluster on the machine takes
the next), each node gets a /24 in it, each pod the next free host number: the first pod of the
first cluster has the same address on every run. Numbers are reused as late as possible, because a
connection to a dead pod should be refused rather than reach its successor. Where only 127.0.0.1
can be bound (macOS), everybody shares it.
"""

import contextlib
import socket
import sys

FALLBACK = "127.0.0.1"
_CLAIM_PORT = 47611
_FIRST, _LAST = 64, 254


class ClusterAddresses:
    """The /16 of one cluster; `close` gives it back."""

    def __init__(self) -> None:
        self._claim: socket.socket | None = None
        self._prefix: str | None = None
        self._nodes = 0
        if not sys.platform.startswith("linux"):
            return
        for second in range(_FIRST, _LAST + 1):
            claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                claim.bind((f"127.{second}.255.254", _CLAIM_PORT))
                claim.listen(1)
            except OSError:
                claim.close()
                continue
            self._claim, self._prefix = claim, f"127.{second}"
            return

    def node(self) -> "NodeAddresses":
        """The addresses of one more node."""
        number = self._nodes
        self._nodes += 1
        if self._prefix is None or number > 254:
            return NodeAddresses(None)
        return NodeAddresses(f"{self._prefix}.{number}")

    def close(self) -> None:
        """Let another cluster have the block."""
        if self._claim is not None:
            with contextlib.suppress(OSError):
                self._claim.close()
            self._claim = None


class NodeAddresses:
    """The /24 of one node: `.1` is the node itself, `.2` and up are pods."""

    def __init__(self, prefix: str | None) -> None:
        self._prefix = prefix
        self._used: set[int] = set()
        self._next = 2
        self.node_ip = FALLBACK if prefix is None else f"{prefix}.1"
        self.cidr = None if prefix is None else f"{prefix}.0/24"

    def take(self) -> str:
        """An address no living pod of the node has; raises RuntimeError when all are taken."""
        if self._prefix is None:
            return FALLBACK
        for offset in range(253):
            number = 2 + (self._next - 2 + offset) % 253
            if number not in self._used:
                self._used.add(number)
                self._next = number + 1
                return f"{self._prefix}.{number}"
        raise RuntimeError(f"all 253 pod addresses of {self.cidr} are taken: delete pods")

    def release(self, address: str) -> None:
        """Give an address back."""
        if self._prefix is not None and address.startswith(f"{self._prefix}."):
            self._used.discard(int(address.rpartition(".")[2]))
