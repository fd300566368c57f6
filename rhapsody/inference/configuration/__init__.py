"""What users configure: the file of an engine, the objects of Dragon, and the HTTP server."""
