"""The newest state of a run in the memory of its pods: kept, scheduled, and restored from."""
