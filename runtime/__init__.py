"""Engine directory to tokens: the unmasking loop and everything around it."""
