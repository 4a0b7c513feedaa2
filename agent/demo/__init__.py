"""The whole story told on a server of its own, each step checked."""
