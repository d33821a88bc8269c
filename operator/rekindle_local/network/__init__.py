"""Addresses, names and certificates of the embedded cluster."""
