"""Structural schemas and CEL rules."""
