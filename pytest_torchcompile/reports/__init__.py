"""Views of results, as text."""
