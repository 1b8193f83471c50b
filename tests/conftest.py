"""One thread a test process: two of them fill two cores, and times do not depend on who else is at work."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
