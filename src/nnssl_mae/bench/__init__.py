"""Measured ratios: this package and stock nnU-Net side by side, in one run on one machine."""
