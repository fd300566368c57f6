"""Many rows of data through a model: reading rows, prompts from them, and files of results."""
