"""Finished nnU-Net models compared: metrics of every case, statistics, pictures, a page."""
