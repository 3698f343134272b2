"""Networks for pre-training, built from nnU-Net plans."""
