"""Nodes that the kernel pack computes in one go: products of the same rows, and what surrounds them.

What is looked for, as the inputs and outputs of nodes say it:

- products of the same input, up to `MOST_PRODUCTS` of them;
- two products of which one goes through SiLU and is then multiplied by the other, the gate of a SwiGLU layer;
- RMS normalization in front of products, with the residual sum that it normalizes.

A value that anything else uses is never hidden within a fused node; the residual sum is an output of it.
Where something is not as it should be, nodes stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from qtool_runtime.model_file import Node, Number

PRODUCT, FUSED = "MatMulNBits", "FusedMatMulNBits"
"""Operators of the pack's domain."""

ONNX, MICROSOFT = "", "com.microsoft"
MOST_PRODUCTS = 3


class _Values:
    """Which nodes make and use each value."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[str]) -> None:
        self._makers = {name: node for node in nodes for name in node.outputs if name}
        self._users: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            for name in node.inputs:
                self._users[name].append(node)
        self._outputs = frozenset(outputs)

    def maker(self, name: str) -> Node | None:
        """Returns the node that makes a value, or None for inputs and initializers of the graph."""
        return self._makers.get(name)

    def users(self, name: str) -> list[Node | None]:
        """Returns a node for each time that it uses a value, and None for an output of the graph."""
        found: list[Node | None] = [*self._users.get(name, ())] if name else []
        return [*found, None] if name in self._outputs else found

    def only_user(self, name: str, domain: str, operator: str) -> Node | None:
        """Returns what uses a value, if it is one node of that kind, and uses it once."""
        users = self.users(name)
        node = users[0] if len(users) == 1 else None
        return node if node is not None and (node.domain, node.operator) == (domain, operator) else None


def fuse(nodes: Sequence[Node], outputs: Iterable[str], domain: str) -> list[Node]:
    """Replaces groups of nodes by fused ones.

    Args:
        nodes: of the main graph, sorted: each comes after those whose values it uses.
        outputs: names of the graph's outputs.
        domain: the pack's; products of this domain are fused, and fused nodes are of it.

    Returns:
        The nodes, each fused one in the place of the first one that it replaces.
    """
    if any(node.has_graph for node in nodes):
        return list(nodes)  # a graph within a node may use any value
    values = _Values(nodes, outputs)
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        if (node.domain, node.operator) == (domain, PRODUCT) and _is_fusible(node, values):
            groups[node.inputs[0]].append(node)
    places = {id(node): place for place, node in enumerate(nodes)}
    kept: list[Node | None] = list(nodes)
    for products in groups.values():
        fused, replaced = _fuse_products(products, values, domain)
        if len(replaced) > 1:
            for node in replaced:
                kept[places[id(node)]] = None
            kept[min(places[id(node)] for node in replaced)] = fused
    return [node for node in kept if node is not None]


def _is_fusible(product: Node, values: _Values) -> bool:
    """Returns whether a product's sizes are known, its weights constant and in the order of its depth."""
    attributes = {"bits": 4, **product.attributes}
    sizes = [attributes.get(name) for name in ("K", "N", "bits", "block_size")]
    order = product.inputs[4:5]
    return (
        3 <= len(product.inputs) <= 6
        and len(product.outputs) == 1
        and all(isinstance(size, int) and size > 0 for size in sizes)
        and order in ((), ("",))
        and not any(values.maker(name) for name in product.inputs[1:])
    )


def _fuse_products(products: list[Node], values: _Values, domain: str) -> tuple[Node, list[Node]]:
    """Returns a fused node for products of the same input, and which nodes it replaces."""
    depth = products[0].attributes["K"]
    if len(products) > MOST_PRODUCTS or any(product.attributes["K"] != depth for product in products):
        return products[0], products[:1]
    attributes: dict[str, Number] = {"K": depth}
    inputs, outputs = [products[0].inputs[0], "", ""], [""]
    replaced = list(products)

    if gate := _find_gate(products, values):
        first, second, activation, multiplication = gate
        products = [first, second]
        attributes["gated"] = 1
        outputs += multiplication.outputs
        replaced += [activation, multiplication]
    else:
        outputs += [product.outputs[0] for product in products]
    for number, product in enumerate(products, 1):
        attributes |= {f"{name}{number}": product.attributes[name] for name in ("N", "block_size")}
        attributes[f"bits{number}"] = product.attributes.get("bits", 4)
        weights = [*product.inputs[1:], *[""] * 6]
        inputs += [*weights[:3], weights[4]]  # B, scales, zero points; bias

    if normalization := _find_normalization(products, values):
        attributes["epsilon"] = normalization.attributes["epsilon"]
        if normalization.operator == "RMSNormalization":
            inputs[0], inputs[2] = normalization.inputs
        else:
            inputs[:3] = normalization.inputs
            residual = normalization.outputs[3] if len(normalization.outputs) > 3 else ""
            outputs[0] = residual if values.users(residual) else ""
        replaced.append(normalization)
    return Node(domain, FUSED, tuple(inputs), tuple(outputs), attributes), replaced


def _find_gate(products: list[Node], values: _Values) -> tuple[Node, Node, Node, Node] | None:
    """Returns the products as activated and other one, the activation and the multiplication of both."""
    if len(products) != 2 or products[0].attributes["N"] != products[1].attributes["N"]:
        return None
    for first, second in (products, products[::-1]):
        # QuickGelu is x * sigmoid(alpha * x): SiLU if alpha is 1.
        activation = values.only_user(first.outputs[0], MICROSOFT, "QuickGelu")
        if activation is None or activation.attributes.get("alpha") != 1.0 or len(activation.outputs) != 1:
            continue
        multiplication = values.only_user(activation.outputs[0], ONNX, "Mul")
        if multiplication is None or len(multiplication.outputs) != 1:
            continue
        if values.only_user(second.outputs[0], ONNX, "Mul") is multiplication:
            return first, second, activation, multiplication
    return None


def _find_normalization(products: list[Node], values: _Values) -> Node | None:
    """Returns what makes the products' input, if it is RMS normalization, and only for them."""
    node = values.maker(products[0].inputs[0])
    if node is None or not isinstance(node.attributes.get("epsilon"), float):
        return None
    if (node.domain, node.operator) == (ONNX, "RMSNormalization"):
        known = len(node.inputs) == 2 and len(node.outputs) == 1
        known &= node.attributes.get("axis", -1) == -1 and node.attributes.get("stash_type", 1) == 1
    elif (node.domain, node.operator) == (MICROSOFT, "SkipSimplifiedLayerNormalization"):
        known = len(node.inputs) == 3 and not any(values.users(name) for name in node.outputs[1:3])
    else:
        return None
    alone = {id(user) for user in values.users(node.outputs[0])} == {id(product) for product in products}
    is_first = node.outputs[0] == products[0].inputs[0]
    return node if known and alone and is_first and values.maker(node.inputs[-1]) is None else None
