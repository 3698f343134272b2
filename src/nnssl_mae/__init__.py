"""Masked-autoencoder pre-training for stock nnU-Net v2.

Kept free of imports: Python looks this package up at every start (see docs/registration.md).
"""

__version__ = "0.1.0"
