"""A study: a YAML file into a resumable list of stock commands, run here or by Slurm, with its gates."""
