"""From the memory of a process to a committed checkpoint, beside the training."""
