"""Callbacks that change weights or which of them train: averages, fine-tuning."""
