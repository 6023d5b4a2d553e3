"""The process and the device that a check runs on.

In: nothing. Out: contexts that isolate a check (random numbers, flags, time limits) and facts about the
device.

Other folders use `autocast`, `budget`, `code_cache`, `devices`, `folders`, `isolation`, `progress`,
`watchdog`.
"""
