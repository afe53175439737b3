"""Examples in the documentation that work: they ask tasks that are served."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_aot.serving.request import TaskInfo

from .checks import ENDPOINTS
from .schemas import BASE

TEXT = "A film that stays with you."


def with_examples(
    schema: Mapping[str, Any], tasks: Mapping[str, TaskInfo], folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """Return an OpenAPI schema with an example body for each endpoint that takes one.

    Args:
        schema: What FastAPI made.
        tasks: The tasks that may be named.
        folders: Where adapters may be loaded from.
    """
    first = {ENDPOINTS[task.kind]: name for name, task in sorted(tasks.items(), reverse=True)}
    classify, tag = first.get("/v1/classify", "sentiment"), first.get("/v1/tag", "entities")
    again = next((name for name in sorted(tasks) if any((f / name).is_dir() for f in folders)), "new-task")
    bodies = {
        "/v1/classify": {"task": classify, "texts": [TEXT, "Two hours I will not get back."]},
        "/v1/tag": {"task": tag, "text": "Ada Lovelace was born in London."},
        "/v1/embed": {"task": first.get("/v1/embed", BASE), "text": TEXT},
        "/v1/batch": {
            "requests": [
                {"task": classify, "text": TEXT},
                {"task": tag, "text": "Ada Lovelace was born in London."},
                {"task": BASE, "text": TEXT},
            ],
            "timeout": 10,
        },
        "/v1/load_adapter": {"lora_name": "another-name", "lora_path": again},
        "/v1/unload_adapter": {"lora_name": "another-name"},
    }
    filled = copy.deepcopy(dict(schema))
    for path, body in bodies.items():
        if path in filled["paths"]:
            filled["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] = body
    return filled
