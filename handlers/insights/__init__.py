"""Insights: facts from alerts, utilization and advice, explained by a model or a template."""
