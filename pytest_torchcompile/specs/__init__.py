"""Describes the inputs of a policy: specs of tensors, and nests of specs, as code and as text.

In: what the user declares, or the spaces of a library's policy. Out: a tree of specs, and trees of invalid
inputs.

Other folders use `conventions`, `conversion`, `deferral`, `invalid_inputs`, `notation`, `spaces`, `trees`.
"""
