"""Containers as processes of this machine: start, probe, restart, end."""
