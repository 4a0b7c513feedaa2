"""How many replicas to order for the load to come: a price on short minutes, learned online."""

from handlers.capacity.policy import CapacityPolicy

__all__ = ["CapacityPolicy"]
