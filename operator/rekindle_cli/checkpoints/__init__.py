"""Checkpoints in a store: listed, checked, kept, imported, audited."""
