"""Many tasks on one frozen backbone, answered in shared batches; nothing here knows HTTP."""

from .batch_record import BatchRecord
from .engine import Engine
from .errors import DeadlineExceeded, EngineClosed, Overloaded, UnknownTask
from .limits import Limits
from .request import (
    Answer,
    Classification,
    Embedding,
    Entity,
    MultiLabel,
    Regression,
    Request,
    Tags,
    TaskInfo,
    Word,
)

__all__ = [
    "Answer",
    "BatchRecord",
    "Classification",
    "DeadlineExceeded",
    "Embedding",
    "Engine",
    "EngineClosed",
    "Entity",
    "Limits",
    "MultiLabel",
    "Overloaded",
    "Regression",
    "Request",
    "Tags",
    "TaskInfo",
    "UnknownTask",
    "Word",
]
