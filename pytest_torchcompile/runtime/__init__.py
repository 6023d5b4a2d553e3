"""The process and the device that a check runs on.

In: nothing of a check. Out: contexts that isolate it (random numbers, flags, time limits) and facts about the
device.

Other folders use `autocast`, `devices`, `isolation`, `progress`, `watchdog`.
"""
