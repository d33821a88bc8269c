"""What the server knows about built-in kinds: defaults, status, refusals, columns."""
