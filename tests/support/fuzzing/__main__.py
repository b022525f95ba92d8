"""The command: `python tests/support/fuzzing`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent.parent)  # where `support` is

from support.fuzzing import run  # noqa: E402  # which is found only now

sys.exit(run.main())
