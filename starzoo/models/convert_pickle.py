"""Convert a pickle of weights in a subprocess without secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from starzoo.errors import UntrustedInputError
from starzoo.files import atomic_write, cache_folder

__all__ = ["convert", "converted", "is_converted"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_SECONDS = 600
_ENVIRONMENT = (  # what a Python needs to start and to find its libraries and temporary files, and no token
    *("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)

Digests = tuple[str, str]


def is_converted(pickle: str, config: str) -> bool:
    """Whether weights were converted before."""
    return (_folder((pickle, config)) / _CONFIG).is_file()


def converted(config: Path, fetch_pickle: Callable[[], Path], digests: Digests, subject: str) -> Path:
    """A folder in timm format with the weights of a pickle, made when it is first asked for."""
    folder = _folder(digests)
    if not is_converted(*digests):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as scratch:
            convert(fetch_pickle(), Path(scratch) / _WEIGHTS, subject)
            shutil.copyfile(config, Path(scratch) / _CONFIG)
            folder.mkdir(exist_ok=True)
            for name in (_WEIGHTS, _CONFIG):
                with atomic_write(folder / name) as draft:
                    (Path(scratch) / name).replace(draft)
    return folder


def _folder(digests: Digests) -> Path:
    return cache_folder("converted") / "-".join(digest[:32] for digest in digests)


def convert(pickle: Path, weights: Path, subject: str, *, ema: bool = True) -> None:
    """Let `starzoo.models.unpickle` copy the tensors of a checkpoint to a safetensors file."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "starzoo.models.unpickle", str(pickle.resolve()), str(weights.resolve())]
    command += [] if ema else ["--no-ema"]
    try:
        ended = subprocess.run(
            command, env=environment, cwd=weights.parent, timeout=_SECONDS, capture_output=True, text=True, check=False
        )
        problem = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1] if ended.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"it took more than {_SECONDS} s"
    if problem:
        problem = "".join(character for character in problem if character.isprintable())
        raise UntrustedInputError(
            subject,
            f"{pickle.name} cannot be converted: {problem[:300]}",
            hint="ask its author for model.safetensors, or save the state dict alone with torch.save",
        )
