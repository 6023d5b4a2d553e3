"""Explains why a case differs: finds the compiler stage, the step and the submodule, and writes a script.

Input: a case or a story that differs. Output: its `Explanation`.

Other folders use `explanation`.
"""
