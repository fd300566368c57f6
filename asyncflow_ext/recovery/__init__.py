"""Recovery of a run: results that are not computed again, and an end before the walltime."""
