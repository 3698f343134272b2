"""Semi-synthetic brains of several real anatomies, and the data sets made of them."""
