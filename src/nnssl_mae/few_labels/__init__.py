"""Few-label splits: a labelled dataset into further folds of nnU-Net's ``splits_final.json``."""
