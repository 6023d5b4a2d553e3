"""The life of a policy: it acts, learns, is saved, loaded and changed, and stays like its eager twin.

In: a declaration. Out: the `CheckResult` of the lifecycle.

Other folders use `protocol`, `side`, `sides`, `stories`, `trial`.
"""
