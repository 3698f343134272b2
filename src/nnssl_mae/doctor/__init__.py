"""Is this machine fit to train, and what to do where it is not."""
