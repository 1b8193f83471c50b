"""Names of numpy's arrays by what they hold, of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["AnyArray", "FloatArray", "IntArray"]

AnyArray = np.ndarray[Any, Any]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
