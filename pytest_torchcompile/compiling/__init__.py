"""Compile a method and record what the compiler did: graphs, graph breaks, recompiles, seconds.

In: a method and the options of `torch.compile`. Out: the compiled method and its `Capture`.

Other folders use `budgets`, `capture`, `compilation`, `failures`, `recompiling`, `recurrent`, `toolchain`,
`work`.
"""
