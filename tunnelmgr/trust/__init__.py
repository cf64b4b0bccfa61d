"""Whose word is taken for an agent's host key, in the order that its source names."""
