"""Tests, in rooms like the package; what they share is in support/."""
