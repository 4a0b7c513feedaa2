"""Carries advice out: who may, what is done, and what came of it."""
