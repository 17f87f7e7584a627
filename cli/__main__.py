"""`python -m starzoo.cli`, which is also what torchrun and accelerate start."""

import sys

from .main import main

if __name__ == "__main__":  # a spawned worker process imports this file again under another name
    sys.exit(main())
