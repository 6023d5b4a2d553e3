"""Reports of wrong results under torch.compile, each as a small policy, and what the check says of them.

``python -m benchmarks.miscompiles measure`` measures the installed torch, ``table`` renders the page.
"""
