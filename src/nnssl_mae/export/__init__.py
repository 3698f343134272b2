"""Checkpoints and fine-tuned models in forms for others, with a model card and without anything that identifies."""
