"""The HTTP server of an inference service: routes, the proxy to replicas, error responses."""
