"""What all tests share.

torch is imported here, before pytester takes its first snapshot of ``sys.modules``: it drops what is
imported while it runs pytest in process, and torch can't be imported twice.
"""

import torch  # noqa: F401

pytest_plugins = ["pytester"]
