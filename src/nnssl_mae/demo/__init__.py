"""Semi-synthetic brains from a real template, and the demonstration that uses them."""
