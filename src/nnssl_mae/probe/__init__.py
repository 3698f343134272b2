"""Whether a pre-trained network is worth fine-tuning, in minutes."""
