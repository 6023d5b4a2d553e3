"""What a check finds beyond what was declared: remarks, which fail nothing unless the user asks.

In: a case that has passed. Out: its remarks.

Other folders use `remarks`.
"""
