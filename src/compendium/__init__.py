"""The book's machinery: stored results, pages, parameters, claims, charts."""
