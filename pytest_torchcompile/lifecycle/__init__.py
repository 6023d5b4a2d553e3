"""Checks the lifecycle of a policy: it acts, learns, is saved, loaded and changed like its eager twin.

Input: a declaration. Output: the `CheckResult` of the lifecycle.

Other folders use `protocol`, `side`, `sides`, `stories`, `trial`.
"""
