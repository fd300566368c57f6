"""The replicas of a model: their placement, their servers, and the pool that uses them."""
