"""What example scripts show when they start."""

from rekindle.pytorch.utilities.rank_zero import rank_zero_info


def cli_lightning_logo() -> None:
    """Say on rank 0 which trainer runs the script."""
    rank_zero_info("Rekindle: a script written for Lightning")
