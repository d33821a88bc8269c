"""How a checkpoint lies in a store: its documents, its bytes, its checksums."""
