"""vLLM as the engine of a replica: its server process, the batch route, the options."""
