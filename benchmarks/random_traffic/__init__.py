"""Random traffic on one LLM: who asks what, what becomes of it, what it takes, and whether it is the same alone."""
