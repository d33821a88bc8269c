"""What outlives a process: when and where a run is saved, and what the next one begins from."""
