"""Specs to tensors: fixed examples, Hypothesis strategies, and the search for the smallest failing example.

In: a tree of specs. Out: recipes (plain data), and the tensors that a recipe describes.

Other folders use `descriptions`, `edges`, `recipes`, `search`, `strategies`, `tensors`.
"""
