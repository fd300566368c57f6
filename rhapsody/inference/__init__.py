"""From a prompt to a response: batcher, pool, replicas, gateway. It knows nothing of tasks."""
