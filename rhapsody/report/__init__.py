"""Seeing a run: one HTML page of it, and a live view in the terminal."""
