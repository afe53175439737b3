"""Comparing methods on tasks by one protocol: `compare(CompareOptions(...))`."""

from .comparison import CompareResult, View, compare
from .options import CompareOptions

__all__ = ["CompareOptions", "CompareResult", "View", "compare"]
