"""Networks that denoise, and their training."""
