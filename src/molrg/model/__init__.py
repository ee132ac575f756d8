"""The data model, its optimal denoiser, that of finitely many points, and noise levels."""
