"""The unmasking loop as tensor code over device-resident state."""
