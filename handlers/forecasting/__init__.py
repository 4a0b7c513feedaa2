"""Forecasts of one series, with intervals and their own error, learned online."""

from handlers.forecasting.forecaster import Estimate, Forecaster

__all__ = ["Estimate", "Forecaster"]
