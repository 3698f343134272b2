"""Labelled datasets: plans for fine-tuning."""
