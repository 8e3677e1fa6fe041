"""The model over HTTP: OpenAI's completions with per-request gates, on Ray Serve."""
