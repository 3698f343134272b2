"""How large the demonstration is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSize:
    """Every number of the demonstration that is not in its recipe."""

    name: str
    resolution: int
    """Edge length of a voxel in mm."""
    recipe: str
    """Shipped pre-training recipe."""
    unlabelled: int
    """Brains for pre-training."""
    training: int
    """Labelled brains for fine-tuning."""
    validation: int
    """Labelled brains for nnU-Net's own validation during fine-tuning."""
    test: int
    """Labelled brains that are kept aside for the Dice scores."""
    epochs: int
    """Of fine-tuning; the same for both arms."""
    iterations: int
    """Optimiser steps an epoch of fine-tuning; the same for both arms."""
    workers: int
    """Processes of nnU-Net for preprocessing and augmentation."""
    seed: int = 20090
    """Every brain is a function of this number, its set and its place in the set."""
    labelled_styles: tuple[str, ...] = ("t1",)
    """Contrasts of the labelled brains: one protocol, as in most labelled datasets."""
    labelled_lesions: tuple[int, int] = (2, 7)
    """Fewest and most lesions of a labelled brain."""


# These numbers were fixed before the first run. Both arms share them, and nothing is tuned towards the
# pre-trained model beating the one from scratch: the report shows whatever comes out.
SMALL = DemoSize("small", 3, "demo", 24, training=3, validation=1, test=4, epochs=10, iterations=10, workers=2)
FULL = DemoSize("full", 1, "demo_full", 200, training=10, validation=2, test=20, epochs=100, iterations=100, workers=8)
