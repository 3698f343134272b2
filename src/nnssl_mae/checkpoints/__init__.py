"""Reading, transferring and writing checkpoints."""
