"""One small rule per ATen operator; see `registry` for what a rule is."""

from starzoo.symmetry.rules import contract, elementwise, normalize, position, recurrent, shape
from starzoo.symmetry.rules.registry import apply_rule, find_rule, rule

__all__ = ["apply_rule", "contract", "elementwise", "find_rule", "normalize", "position", "recurrent", "rule", "shape"]
