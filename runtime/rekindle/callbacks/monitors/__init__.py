"""Callbacks that watch and show: progress, throughput, devices, gradients, learning rates."""
