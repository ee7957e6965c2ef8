"""The worker: Triton with the deployed model and its parity models, one computation at a time."""
