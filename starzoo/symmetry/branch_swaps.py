"""Exchange of identical parallel branches: a symmetry that permutes whole tensors, not the axes of one.

Where a network adds up branches of the same form, f(x; θ₁) + f(x; θ₂) + …, the parameters of two branches may change
places. Branches are found in the graph of a forward pass: two summands that are computed in the same way from the same
tensors, except that each has parameters of its own, which nothing else reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile, zip_longest

from starzoo.symmetry.call_graph import Node, Value
from starzoo.symmetry.spec import BranchSwap, Concat, Leaf, Pinned, Product, Term, groups_of

__all__ = ["find_branch_swaps"]

Branch = Mapping[Node, Node]  # from every node of the first branch to its counterpart in another one


def find_branch_swaps(nodes: Iterable[Node], axes: Mapping[str, tuple[Term, ...]]) -> tuple[BranchSwap, ...]:
    """Find branches that may change places.

    Args:
        nodes: All calls of a forward pass.
        axes: For every tensor of the state dict, one term per axis.

    Returns:
        The exchanges, no tensor in two of them. A branch lists its tensors in the order of the state dict.
    """
    order = {name: place for place, name in enumerate(axes)}
    found: list[tuple[tuple[str, ...], ...]] = []
    for node in nodes:
        if _is_sum(node) and not (len(node.consumers) == 1 and _is_sum(node.consumers[0])):
            for branches in _alike(list(_summands(node))):
                first = sorted((leaf for leaf in branches[0] if leaf.name), key=lambda leaf: order[leaf.name])
                found.append(tuple(tuple(branch[leaf].name for leaf in first) for branch in branches))
    homes: dict[str, set[str]] = {}  # the tensors that each group moves
    for tensor, name in (
        (tensor, name) for tensor, terms in axes.items() for term in terms for name in groups_of(term)
    ):
        homes.setdefault(name, set()).add(tensor)
    exchanges: list[BranchSwap] = []
    taken: set[str] = set()
    for members in sorted(found, key=lambda members: -len(members[0])):  # of branches inside of branches the outer ones
        names = {name for member in members for name in member}
        inside = _groups_inside(members, axes, homes)
        if taken.isdisjoint(names) and inside is not None:
            exchanges.append(BranchSwap(_name(members), members, inside))
            taken |= names
    return tuple(sorted(exchanges, key=lambda exchange: order[exchange.members[0][0]]))


def _name(members: Sequence[Sequence[str]]) -> str:
    """Where the first names differ, in braces: ``blocks.0.attns.{0,1}``."""
    columns = list(zip_longest(*(member[0].split(".") for member in members), fillvalue=""))
    shared = takewhile(lambda column: len(set(column)) == 1, columns)
    prefix = [column[0] for column in shared]
    return ".".join([*prefix, "{" + ",".join(columns[len(prefix)]) + "}"])


def _groups_inside(
    members: Sequence[Sequence[str]], axes: Mapping[str, tuple[Term, ...]], homes: Mapping[str, Collection[str]]
) -> tuple[tuple[str, ...], ...] | None:
    """The groups inside of each branch, which correspond; None where a group is neither that nor alike in all."""
    columns = [[token for tensor in member for term in axes[tensor] for token in _tokens(term)] for member in members]
    if len({len(column) for column in columns}) > 1:
        return None
    rows = dict.fromkeys(zip(*columns, strict=True))
    inner = [row for row in rows if len(set(row)) > 1]
    if any(name not in homes for row in inner for name in row) or any(len(set(row)) < len(row) for row in inner):
        return None
    branch_of = {name: branch for row in inner for branch, name in enumerate(row)}
    if len(branch_of) < len(inner) * len(members):  # a group has two counterparts
        return None
    if any(not set(members[branch]).issuperset(homes[name]) for name, branch in branch_of.items()):
        return None
    return tuple(zip(*inner, strict=True)) if inner else tuple(() for _ in members)


def _tokens(term: Term) -> Iterator[str]:
    """A term as words: groups by their names, and everything else such that other structures differ."""
    match term:
        case Leaf(group):
            yield group
        case Pinned(size):
            yield f" in place {size}"  # no group's name begins with a space
        case Product(children) | Concat(children):
            yield f" {type(term).__name__} of {len(children)}"
            for child in children:
                yield from _tokens(child)


def _is_sum(node: Node) -> bool:
    """A sum of two tensors of one shape, or a stack that is summed along its new axis."""
    match node:
        case Node("aten::add" | "aten::add_", [shape], arguments={"alpha": 1}, inputs={"self": x, "other": y}):
            return x.shape == y.shape == shape
        case Node("aten::sum", arguments={"dim": [axis]}, inputs={"self": Value(Node("aten::stack") as stack, _)}):
            new = stack.arguments["dim"] % len(stack.shapes[0])
            return axis % len(stack.shapes[0]) == new and len(stack.consumers) == 1
    return False


def _summands(node: Node) -> Iterator[Value]:
    """What is added up, through sums that nothing but another sum reads."""
    parts = node.inputs.values()
    if node.operator == "aten::sum":
        parts = node.inputs["self"].node.inputs.values()
    for part in map(_without_zero, parts):
        if _is_sum(part.node) and len(part.node.consumers) == 1:
            yield from _summands(part.node)
        else:
            yield part


def _without_zero(value: Value) -> Value:
    """What was added to the number 0, as Python's `sum` begins."""
    match value.node:
        case Node("aten::add" | "aten::add_", arguments={"other": 0, "alpha": 1}, inputs={"self": x}, consumers=[_]):
            return x
    return value


def _alike(summands: Sequence[Value]) -> Iterator[list[Branch]]:
    """Sets of at least two summands of one form, each as what corresponds in it to the first of them."""
    left = list(dict.fromkeys(summands))
    while left:
        first, *left = left
        matches = {other: match for other in left if (match := _match(first, other))}
        if matches:
            left = [other for other in left if other not in matches]
            same = {node: node for node in next(iter(matches.values()))}
            yield [same, *matches.values()]


def _match(first: Value, second: Value) -> Branch | None:
    """What in the second branch corresponds to what in the first; None where they differ or are entangled."""
    pairs: dict[Node, Node] = {}
    waiting = [(first, second)]
    while waiting:
        a, b = waiting.pop()
        if a == b or (a.place == b.place and pairs.get(a.node) is b.node):
            continue
        if a.place != b.place or a.node in pairs or not _same_form(a.node, b.node):
            return None
        pairs[a.node] = b.node
        waiting += zip(a.node.inputs.values(), b.node.inputs.values(), strict=True)
    images = set(pairs.values())
    if len(images) < len(pairs) or not images.isdisjoint(pairs) or not any(node.name for node in pairs):
        return None
    return pairs if _is_closed(pairs.keys(), first.node) and _is_closed(images, second.node) else None


def _same_form(a: Node, b: Node) -> bool:
    """Whether two calls do the same, or two leaves are tensors of the state dict of one shape."""
    if not a.operator:  # the values of other leaves are not known
        return bool(a.name and b.name) and a.shapes == b.shapes
    return (a.operator, a.shapes, a.inputs.keys(), a.arguments) == (b.operator, b.shapes, b.inputs.keys(), b.arguments)


def _is_closed(branch: Collection[Node], root: Node) -> bool:
    """Whether nothing reads a branch but itself, and nothing its root but the sum."""
    inside = set(branch)
    own = all(consumer in inside for node in inside if node is not root for consumer in node.consumers)
    return own and len(root.consumers) == 1
