"""What the compiler did: graphs, what is in them, graph breaks, recompiles, seconds.

In: a method and the options of `torch.compile`. Out: the compiled method and its `Capture`.

Other folders use `budgets`, `capture`, `recompiling`, `recurrent`, `work`.
"""
