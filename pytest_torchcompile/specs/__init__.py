"""What a policy is called with: specs of inputs, nests of them, as code and as text.

In: what the user declares, or what a library's policy says of its own inputs. Out: a tree of specs, and the
inputs that break it.

Other folders use `conventions`, `conversion`, `invalid_inputs`, `notation`, `spaces`, `trees`.
"""
