"""Measures how long eager and compiled take.

Input: two callables. Output: a `Speedup` with its interval and conclusion.

Other folders use `speed`.
"""
