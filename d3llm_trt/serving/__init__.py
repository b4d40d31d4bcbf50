"""Faces on top of LLM that serve it over a network."""
