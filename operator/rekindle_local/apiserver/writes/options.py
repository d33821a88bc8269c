"""What the query and the body of a request ask for, as values."""

from __future__ import annotations

from dataclasses import dataclass

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What the query of a write asks for."""

    dry_run: bool = False
    validation: str = "Warn"
    """Strict refuses unknown fields, Warn reports them, Ignore drops them silently."""
    manager: str = "unknown"
    force: bool = False
    """Take over fields of other managers; server-side apply only."""
    duplicates: tuple[str, ...] = ()
    """Fields that appeared twice in the body."""


@dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """What the body and the query of a delete ask for."""

    grace_seconds: int | None = None
    propagation: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False
