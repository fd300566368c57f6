"""Embeddings, scores and classes of the embedded model, which are made without a model."""
