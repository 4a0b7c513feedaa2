"""Answers from memory and from the streams."""
