"""The network of LLaDA and Dream, written once against the Ops protocol."""
