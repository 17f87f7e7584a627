"""Weights that are there only as a pickle: opened on request, by a process that has no token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from starzoo.cache import cache_folder
from starzoo.errors import UntrustedInputError
from starzoo.files import replacing

__all__ = ["convert", "converted", "is_converted"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_SECONDS = 600
_ENVIRONMENT = (  # what a Python needs to start and to find its libraries and temporary files, and no token
    *("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)

Digests = tuple[str, str]


def is_converted(pickle: str, config: str) -> bool:
    """Whether weights were converted before.

    Args:
        pickle: The hash of the pickle.
        config: The hash of the config.json beside it.

    Returns:
        Whether a folder in timm format is there.
    """
    return (_folder((pickle, config)) / _CONFIG).is_file()


def converted(config: Path, fetch_pickle: Callable[[], Path], digests: Digests, subject: str) -> Path:
    """A folder in timm format with the weights of a pickle, made when it is first asked for.

    Args:
        config: The config.json beside the pickle.
        fetch_pickle: Brings the pickle.
        digests: The hashes of both, which name the folder.
        subject: The repository, for messages.

    Returns:
        The folder.
    """
    folder = _folder(digests)
    if not is_converted(*digests):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as scratch:
            convert(fetch_pickle(), Path(scratch) / _WEIGHTS, subject)
            shutil.copyfile(config, Path(scratch) / _CONFIG)
            folder.mkdir(exist_ok=True)
            for name in (_WEIGHTS, _CONFIG):
                with replacing(folder / name) as draft:
                    (Path(scratch) / name).replace(draft)
    return folder


def _folder(digests: Digests) -> Path:
    return cache_folder("converted") / "-".join(digest[:32] for digest in digests)


def convert(pickle: Path, weights: Path, subject: str, *, ema: bool = True) -> None:
    """Let `starzoo.hub.unpickle` copy the tensors of a checkpoint to a safetensors file.

    Args:
        pickle: What `torch.save` wrote.
        weights: The safetensors file to write.
        subject: The repository or file, for messages.
        ema: Whether averaged weights are taken where there are any.

    Raises:
        UntrustedInputError: The checkpoint holds something else than tensors, or cannot be read.
    """
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "starzoo.hub.unpickle", str(pickle.resolve()), str(weights.resolve())]
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
            f"{subject}: {pickle.name} cannot be converted: {problem[:300]}",
            hint="ask its author for model.safetensors, or save the state dict alone with torch.save",
            subject=subject,
        )
