"""Checkpoint to engine directory, offline."""
