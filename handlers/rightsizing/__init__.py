"""Cheaper GPUs and fewer nodes that still fit what was measured."""
