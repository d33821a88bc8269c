"""Callbacks that look for a learning rate, a batch size, or better hyperparameters."""
