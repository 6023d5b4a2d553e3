"""Why a case differs: the stage of the compiler, the step, the submodule, and a script that shows it.

In: a case or a story that differs. Out: its `Explanation`.

Other folders use `explanation`.
"""
