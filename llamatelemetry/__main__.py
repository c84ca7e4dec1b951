"""``python -m llamatelemetry`` is the command ``llamatelemetry``."""

from __future__ import annotations

import sys

from llamatelemetry.cli import main

if __name__ == "__main__":
    sys.exit(main())
