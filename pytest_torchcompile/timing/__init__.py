"""How long eager and compiled take, measured side by side.

In: two callables. Out: a `Speedup` with its interval and conclusion.

Other folders use `speed`.
"""
