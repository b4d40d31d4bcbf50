"""Engines: a batch of windows in, logits of the requested rows out."""
