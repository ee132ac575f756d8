"""What a denoiser's features say about the class."""
