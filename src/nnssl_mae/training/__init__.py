"""The two nnU-Net trainers and what they need to run."""
