"""A zoo where there is none yet: members trained from scratch that share nothing but task and architecture."""

from __future__ import annotations

from starzoo.zoo.fitting import architecture_for
from starzoo.zoo.member import train_member
from starzoo.zoo.train import MemberReport, train_zoo

__all__ = ["MemberReport", "architecture_for", "train_member", "train_zoo"]
