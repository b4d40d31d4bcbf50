"""Steppers: how the passes of a decoder are made."""
