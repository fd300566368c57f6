"""From a prompt to a response: batcher, pool, replicas, gateway. It does not import tasks."""
