"""Large data in shared memory: segments, who uses them, and values that are pickled into them."""
