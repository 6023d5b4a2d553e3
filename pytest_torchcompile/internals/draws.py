"""Make inductor draw eager's random numbers: by eager's generator, and in eager's order."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def eager_random_numbers() -> contextlib.AbstractContextManager[Any]:
    """Make inductor draw eager's random numbers for the same seed, for compiles and calls in the body.

    With torch's setting for it, inductor calls eager's operators. Before torch 2.13 it may reorder them, so
    a graph with two draws draws other numbers; there a pass of inductor's keeps their order (torch 2.10 to
    2.12).
    """
    import torch._inductor.config as config

    settings: dict[str, Any] = {"fallback_random": True}
    if not _keeps_order_itself() and _can_keep_order():
        settings["post_grad_custom_post_pass"] = _in_order(config.post_grad_custom_post_pass)
    patch: contextlib.AbstractContextManager[Any] = config.patch(settings)
    return patch


def _keeps_order_itself() -> bool:
    """Whether inductor keeps the order of random draws without a pass of ours (since torch 2.13)."""
    from torch._inductor.fx_passes import post_grad

    return hasattr(post_grad, "_chain_random_ops_for_ordering")


def _can_keep_order() -> bool:
    """Whether inductor can be made to keep the order of random draws (since torch 2.10)."""
    try:
        from torch._inductor.fx_passes import control_dependencies
    except ImportError:
        return False
    return hasattr(control_dependencies, "control_deps")


def _in_order(users: Any) -> Any:
    """Return a pass that makes each random operator depend on the one before, after the user's own pass."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class InOrder(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            if users is not None:
                users(graph)
            before: torch.fx.Node | None = None
            for node in [node for node in graph.nodes if _draws(node)]:
                before = node if before is None else _after(before, node)

        def uuid(self) -> Any:
            """Part of the key of inductor's cache; None, for no caching, if the user's pass has none."""
            own = get_hash_for_files((__file__,))
            if users is None:
                return own
            theirs = users.uuid() if isinstance(users, CustomGraphPass) else None
            return None if theirs is None else (own, theirs)

    return InOrder()


def _after(before: torch.fx.Node, node: torch.fx.Node) -> torch.fx.Node:
    """Replace an operator in its graph by one that inductor runs after `before`; return that.

    Torch's own function for this (``preserve_node_ordering``) forgets nodes in lists in torch 2.10, such as
    the sizes of a tensor that is drawn.
    """
    from torch._inductor.fx_passes.control_dependencies import control_deps

    inputs = node.all_input_nodes
    module = node.graph.owning_module
    assert module is not None, "inductor's graphs have modules"
    name = f"{node.name}_alone"
    setattr(module, name, _alone(node, module))
    with node.graph.inserting_before(node):
        alone = node.graph.get_attr(name)
        found = node.graph.call_function(control_deps, ((before,), alone, *inputs))
    found.meta = {key: value for key, value in node.meta.items() if key != "eager_input_vals"}
    node.replace_all_uses_with(found)
    node.graph.erase_node(node)
    return found


def _alone(node: torch.fx.Node, module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a graph of this one operator, whose inputs are the nodes that it takes."""
    graph = torch.fx.Graph(module)
    inputs = {taken: graph.placeholder(taken.name) for taken in node.all_input_nodes}
    for taken, own in inputs.items():
        own.meta = dict(taken.meta)
    result = graph.node_copy(node, inputs.__getitem__)
    graph.output(result).meta = {"val": node.meta["val"]}
    return torch.fx.GraphModule(module, graph)


def _draws(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in node.target.tags
    )
