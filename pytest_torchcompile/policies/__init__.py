"""Treats a user's module as a policy: its methods, its state, and what one call of it leaves behind.

In: a factory and a declaration. Out: two equal twins, their state, and the `Outcome` of a call.

Other folders use `backward`, `binding`, `calls`, `copies`, `counters`, `declaration`, `holders`,
`input_advice`, `loss`, `methods`, `ordinary`, `outcome`, `outputs`, `reachable`, `snapshots`, `state`,
`twins`.
"""
