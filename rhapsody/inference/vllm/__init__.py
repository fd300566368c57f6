"""vLLM as the engine of a replica: its server process, the batch route in it, its options."""
