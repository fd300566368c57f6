"""Model servers that somebody else runs, reached through the OpenAI API."""
