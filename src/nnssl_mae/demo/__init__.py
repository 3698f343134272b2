"""The demonstration: its data, its stages and its report."""
