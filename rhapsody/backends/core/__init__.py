"""The parts of every backend: its life, its owner, its tasks and the service loop."""
