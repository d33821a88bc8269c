"""What docs/generate.py makes pages with."""
