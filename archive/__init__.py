"""The archive: evicted cache entries on disk, compressed, with expiry, found again by key."""
