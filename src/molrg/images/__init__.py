"""Images: read, seen by networks, sampled; published and trained models of them."""

from molrg.images.reading import COLOUR, GREY, MAX_BYTES, NAMES, Images, describe, load, read_folder, read_npz

__all__ = ["COLOUR", "GREY", "MAX_BYTES", "NAMES", "Images", "describe", "load", "read_folder", "read_npz"]
