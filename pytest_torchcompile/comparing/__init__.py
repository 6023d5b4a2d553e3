"""Two outcomes to a judgement: what differs, and whether rounding explains it.

In: the outcomes of both sides on one example. Out: differences, each with its figures.

Other folders use `distributions`, `float64`, `measure`, `nonfinite`, `references`, `representation`,
`rounding`, `tolerance`.
"""
