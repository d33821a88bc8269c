"""What a pod is: the environment that it was given, its signals, its limits, its last message."""
