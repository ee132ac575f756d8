"""The experiments beside the pages of `book/theory`."""
