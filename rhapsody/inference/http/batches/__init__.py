"""Files and batches of requests, as in OpenAI's API."""
