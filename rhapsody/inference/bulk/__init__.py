"""Many requests from a file: its lines, their results, and the run between them."""
