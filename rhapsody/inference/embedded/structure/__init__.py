"""JSON of the embedded model: values for a schema, and tool calls."""
