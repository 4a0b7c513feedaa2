"""What scaling policies would have cost on a recorded load, and how often they were short."""

from handlers.backtest.run import Outcome, backtest

__all__ = ["Outcome", "backtest"]
