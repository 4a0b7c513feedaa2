"""The cache service: RAM lookups by request/reply; what falls out goes to the eviction stream."""
