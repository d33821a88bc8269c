"""Checkpoints of other tools, read, and ours in forms that other tools read."""
