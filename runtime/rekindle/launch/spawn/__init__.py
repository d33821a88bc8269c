"""How workers are started: by a fork server that has imported what they need."""
