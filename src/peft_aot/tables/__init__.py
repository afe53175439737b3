"""Fused lookup tables on disk and in memory; nothing here imports peft or transformers."""

from .format import TABLE_FILE, TableHeader, read_header
from .fuse import FuseReport, write_table
from .store import Table, TableChanged

__all__ = ["TABLE_FILE", "FuseReport", "Table", "TableChanged", "TableHeader", "read_header", "write_table"]
