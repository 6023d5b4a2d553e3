"""Check one case: compare the two sides of a method in a phase, example by example, up to a verdict.

In: a `Pair` of sides and the options. Out: a `CheckResult`.

Other folders use `callables`, `case`, `compiling_branches`, `contracts`, `evidence`, `executed`, `freshness`,
`known_causes`, `pair`, `repeating`, `sampling`, `single_call`, `stops`, `trial`.
"""
