"""What is amiss with a cache, and what to set instead."""
