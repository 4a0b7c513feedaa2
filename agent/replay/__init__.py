"""KV traces played against a live cache, and what came of it."""
