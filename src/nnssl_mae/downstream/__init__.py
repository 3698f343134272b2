"""Labelled datasets: plans for fine-tuning from any checkpoint."""
