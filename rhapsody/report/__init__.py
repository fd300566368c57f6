"""Reports of a run: an HTML page, and a live view in the terminal."""
