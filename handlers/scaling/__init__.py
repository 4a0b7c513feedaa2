"""How many replicas a pool needs, and the advice that says so."""
