"""Makes tensors from specs: fixed examples, Hypothesis strategies, and the search for a failing example.

In: a tree of specs. Out: recipes (plain data), and the tensors that a recipe describes.

Other folders use `descriptions`, `edges`, `recipes`, `search`, `strategies`, `tensors`.
"""
