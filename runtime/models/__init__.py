"""Plain PyTorch models of Spirit LM whose parameter names are those of the official checkpoints."""
