"""Alert rules: what they read, when they raise and clear, and how they change while we run."""
