"""The nodes of the cluster, once for all jobs: what they say of themselves, and which have gone.

A node that was deleted is remembered as gone for as long as a pod of ours is on it. Of each node
the newest form counts: a taint that was told of is not taken back by a list of before.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rekindle_operator.controller.job_state import older
from rekindle_operator.observed.documents import parse_node
from rekindle_operator.observed.observations import Node, gone

KEEP = 100
"""Nodes that are gone and carry no pod of ours, of which it is remembered all the same."""


class NodeWatch:
    """All nodes, as the watch tells of them."""

    def __init__(
        self,
        used: Callable[[], set[str]],
        complain: Callable[[str, Exception | None], None],
        wake: Callable[[str], None],
    ) -> None:
        """Build it around what it asks of the jobs.

        ``used`` gives the nodes that pods are on, ``complain`` tells of a node that cannot be
        understood (None: it can be again), ``wake`` that something about a node is new.
        """
        self._used = used
        self._complain = complain
        self._wake = wake
        self.nodes: dict[str, Node] = {}
        self._newest: dict[str, Mapping[str, Any]] = {}
        """By name, the metadata of the newest form."""
        self._odd: set[str] = set()

    def event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A node was seen, changed or deleted. Heartbeats that change nothing wake up nobody."""
        name = body["metadata"]["name"]
        if kind == "DELETED":
            node: Node | None = gone(name, time.time())
            self._newest.pop(name, None)
        elif older(body, self._newest.get(name)):
            return
        else:
            node = self._read(body)
            self._newest[name] = {"metadata": body["metadata"]}
        if node is None or node == self.nodes.get(name):
            return
        self.nodes.pop(name, None)
        self.nodes[name] = node
        self._wake(name)
        if node.gone:
            self._forget()

    def known(self) -> set[str]:
        """Names of the nodes that are there as far as anybody has told.

        One that a pod is on has been there, whether its watch has told of it or not.
        """
        return self._used() | {node.name for node in self.nodes.values() if not node.gone}

    def _read(self, body: Mapping[str, Any]) -> Node | None:
        """A node; None for one that cannot be understood, of which the jobs on it tell."""
        name = body["metadata"]["name"]
        try:
            node = parse_node(body, time.time(), self.nodes.get(name))
        except Exception as error:
            self._odd.add(name)
            self._complain(name, error)
            return None
        if name in self._odd:
            self._odd.discard(name)
            self._complain(name, None)
        return node

    def _forget(self) -> None:
        """Forget nodes that are gone and that no pod is on, the oldest first."""
        used = self._used()
        idle = [name for name, node in self.nodes.items() if node.gone and name not in used]
        for name in idle[:-KEEP]:
            del self.nodes[name]
