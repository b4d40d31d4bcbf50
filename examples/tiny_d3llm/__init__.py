"""Two tiny checkpoints in the layouts of LLaDA and Dream, trained on synthetic word problems."""
