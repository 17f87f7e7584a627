"""Stars that are put together in a moment, without any fit: the average of aligned members."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from starzoo.align.align import align
from starzoo.config import AlignConfig, EvalConfig, RunConfig
from starzoo.evaluate.results import Evaluation
from starzoo.models.record import ModelRecord
from starzoo.models.sources import load_sources
from starzoo.models.weights import average
from starzoo.star.manifest import StarManifest
from starzoo.star.run.local_paths import LocalPaths
from starzoo.star.star import Star
from starzoo.symmetry import Permutation

__all__ = ["CONFIG", "make_star"]

CONFIG = RunConfig(
    align=AlignConfig(method="balanced-weights"),
    evaluate=EvalConfig(points=3, batch_norm_images=200, validation_images=50),
)


def make_star(
    folder: Path,
    members: Sequence[str | Path],
    *,
    fingerprint: str = "unknown",
    evaluation: Evaluation | None = None,
) -> Path:
    """Write the star of some members, every one of them permuted so that no permutation is the identity."""
    sources = load_sources(members)
    first, *others = sources
    spec = first.architecture.spec
    shuffle = Permutation.random(spec, np.random.default_rng(0))
    found = [each.permutation for each in align(spec, first.state, [other.state for other in others])]
    permutations = [shuffle, *(shuffle.compose(each) for each in found)]
    pairs = list(zip(permutations, sources, strict=True))
    manifest = StarManifest(
        name=folder.name,
        architecture=first.architecture,
        sources=tuple(
            ModelRecord(
                name=source.name,
                repo=source.record.repo,
                sha=source.record.sha,
                files=dict(source.record.files),
            )
            for source in sources
        ),
        config=CONFIG,
        data_fingerprint=fingerprint,
        evaluation=evaluation,
    )
    star = Star(
        manifest=manifest,
        state=average([permutation.apply(source.state) for permutation, source in pairs]),
        permutations={source.name: permutation.to_tensors() for permutation, source in pairs},
    )
    star.save_timm_folder(folder)
    LocalPaths.from_run([str(member) for member in members], [], CONFIG).write(folder)
    return folder
