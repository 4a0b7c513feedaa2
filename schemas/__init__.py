"""The contract: every message, its subject and its units. Imports stdlib and msgspec only."""
