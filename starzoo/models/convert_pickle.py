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

__all__ = ["convert", "convert_snapshot", "is_converted"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_TIMEOUT = 600  # seconds
_ENVIRONMENT = (  # variables that Python needs to start and to find its libraries and temporary files, and no token
    *("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)

Digests = tuple[str, str]


def is_converted(pickle: str, config: str) -> bool:
    """Whether a pickle was converted before, by the digests of the two files of its model."""
    return (_folder((pickle, config)) / _CONFIG).is_file()


def convert_snapshot(config: Path, fetch_pickle: Callable[[], Path], digests: Digests, subject: str) -> Path:
    """Return a folder in timm format with the weights of a pickle, which is converted once."""
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
        process = subprocess.run(
            command, env=environment, cwd=weights.parent, timeout=_TIMEOUT, capture_output=True, text=True, check=False
        )
        problem = (
            (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1] if process.returncode else ""
        )
    except subprocess.TimeoutExpired:
        problem = f"it took more than {_TIMEOUT} s"
    if problem:
        problem = "".join(character for character in problem if character.isprintable())
        raise UntrustedInputError(
            subject,
            f"{pickle.name} cannot be converted: {problem[:300]}",
            hint="ask its author for model.safetensors, or save the state dict alone with torch.save",
        )
