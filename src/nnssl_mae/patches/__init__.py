"""From the preprocessed dataset to batches of patches."""
