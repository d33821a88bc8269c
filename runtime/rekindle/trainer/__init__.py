"""`Trainer`: what a script talks to, and what it can ask of it."""

from rekindle.trainer.trainer import Trainer

__all__ = ["Trainer"]
