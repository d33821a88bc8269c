"""Nodes that can be tainted and taken away, and what a controller manager does about them."""
