"""From unlabelled files on disk to a preprocessed nnU-Net dataset."""
