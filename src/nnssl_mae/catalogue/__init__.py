"""Files as they are on disk into a table of scans: found, named, checked, and reported on."""
