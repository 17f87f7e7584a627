"""Train members of a zoo from scratch."""

from __future__ import annotations

from starzoo.models.training.match_data import architecture_for
from starzoo.models.training.member import train_member
from starzoo.models.training.zoo import MemberReport, train_zoo

__all__ = ["MemberReport", "architecture_for", "train_member", "train_zoo"]
