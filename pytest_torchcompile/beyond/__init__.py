"""Checks a policy beyond what was declared. Findings are remarks, which fail only if the user asks for it.

Input: a case that has passed. Output: its remarks.

Other folders use `rejection`, `remarks`.
"""
