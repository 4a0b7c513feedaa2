"""Insights: facts from alerts, use, waste, savings and advice, told by a model or a template."""
