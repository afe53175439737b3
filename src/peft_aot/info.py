"""What an adapter folder or a table holds, read from its files alone: no backbone is loaded, nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from peft_aot.aot.config import AoTConfig
from peft_aot.card import read_task
from peft_aot.fusion import CONFIG_FILE, read_factors
from peft_aot.head_card import HEAD_FILE, HeadCard, read_head_card
from peft_aot.sizes import format_bytes
from peft_aot.stored import stored_tuners
from peft_aot.tables import TABLE_FILE, TableHeader, read_header
from peft_aot.tables.format import factors_hash

SHOWN_LABELS = 6


@dataclass(frozen=True)
class TableInfo:
    """A fused table.

    Attributes:
        path: The file.
        bytes: Its size.
        header: What it says of itself, or None if it cannot be read.
        fresh: Whether its rows are those of the factors beside it; None if there are no factors to compare with.
        problem: Why it cannot be read, if it cannot.
    """

    path: Path
    bytes: int
    header: TableHeader | None = None
    fresh: bool | None = None
    problem: str | None = None


@dataclass(frozen=True)
class HeadInfo:
    """A layer that was trained beside the adapter proper, such as a classification head.

    Attributes:
        name: Its name in the model.
        shape: Of its weight, outputs first.
        bytes: Of all its tensors.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class AdapterInfo:
    """A saved adapter.

    Attributes:
        path: Its folder.
        method: PEFT's name of the method, such as "AOT" or "LORA".
        method_name: The name that the method goes by, such as "AoT P-Tuning"; only for methods of this package.
        base_model: Name or path of the backbone; None if it was not recorded.
        task_type: PEFT's kind of task, such as "SEQ_CLS"; None if not recorded.
        rank: r, for methods that have one.
        own_bytes: Of the adapter's own tensors, or of the whole file if it is not a safetensors file.
        values: What these tensors are called, in the plural.
        heads: What was trained beside them.
        task: Name of its task, from `task.json`.
        scores: Validation scores by name, from `task.json`.
        settings: More about an adapter of this package, in words, by name.
        fusable: Whether its method has tables.
        table: Its fused table, if it has one.
        head_card: What its outputs mean, from `head.json`; None if there is no such file, or none that can be read.
        head_problem: Why that file cannot be read, if it cannot.
    """

    path: Path
    method: str
    base_model: str | None
    task_type: str | None
    rank: int | None
    own_bytes: int
    method_name: str | None = None
    values: str = "factors"
    heads: tuple[HeadInfo, ...] = ()
    task: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    fusable: bool = False
    table: TableInfo | None = None
    head_card: HeadCard | None = None
    head_problem: str | None = None


def describe(path: str | Path) -> AdapterInfo | TableInfo:
    """Tell what an adapter folder, of any PEFT method, or a table file holds.

    Raises:
        FileNotFoundError: Nothing there, or a folder without an adapter.
        ValueError: A file that is not a table, or weights that cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return TableInfo(path, path.stat().st_size, read_header(path))
    if not (path / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"expected {CONFIG_FILE} in {path}, got none; pass a folder that save_pretrained wrote, or a table"
        )
    config = PeftConfig.from_pretrained(str(path))
    task = read_task(path)
    scores = task.get("scores")
    own, heads = _weights(path, config)
    method = _text(config.peft_type) or "unknown"
    tuner = stored_tuners().get(method)
    head_card, head_problem = _head_card(path)
    fusable = isinstance(config, AoTConfig) and config.bottleneck_input != "hidden"
    return AdapterInfo(
        path=path,
        method=method,
        base_model=config.base_model_name_or_path,
        task_type=_text(config.task_type),
        rank=getattr(config, "r", None),
        own_bytes=own,
        method_name=None if tuner is None else tuner.method,
        values="factors" if tuner is None else tuner.values,
        heads=heads,
        task=_text(task.get("task")),
        scores={str(name): float(value) for name, value in scores.items()} if isinstance(scores, dict) else {},
        settings={} if tuner is None else tuner.settings(config),
        fusable=fusable,
        table=_table(path) if fusable else None,
        head_card=head_card,
        head_problem=head_problem,
    )


def lines(info: AdapterInfo | TableInfo) -> list[tuple[str, str]]:
    """Return (what, value) pairs in words and sizes, in the order to be read."""
    if isinstance(info, TableInfo):
        return [("table", str(info.path)), *_table_lines(info)]
    scores = ", ".join(f"{name} {value:.4f}" for name, value in info.scores.items())
    rank = {} if info.rank is None else {"rank": str(info.rank)}
    found: list[tuple[str, str | None]] = [
        ("adapter", str(info.path)),
        ("method", info.method if info.method_name is None else f"{info.method_name} ({info.method})"),
        ("backbone", info.base_model or "not recorded"),
        ("task", " ".join(filter(None, (info.task, info.task_type and f"({info.task_type})"))) or "not recorded"),
        ("validation scores", scores or None),
        *{**rank, **info.settings}.items(),
        (info.values, format_bytes(info.own_bytes)),
    ]
    for head in info.heads:
        outputs = " x ".join(str(length) for length in head.shape)
        found.append((f"head {head.name}", f"{outputs}, {format_bytes(head.bytes)}"))
    if info.head_card is not None:
        found += _card_lines(info.head_card)
    elif info.head_problem is not None:
        found.append((HEAD_FILE, f"not usable: {info.head_problem}"))
    if info.table is not None:
        found += _table_lines(info.table)
    elif info.fusable:
        found.append(("fused table", "none; `peft-aot fuse DIR` makes one"))
    return [(what, value) for what, value in found if value is not None]


def _table_lines(table: TableInfo) -> list[tuple[str, str]]:
    header = table.header
    if header is None:
        return [("fused table", f"{format_bytes(table.bytes)}, not usable: {table.problem}")]
    kept = "complete" if header.complete else "partial"
    state = {None: "", True: ", fresh", False: ", stale: made from other factors, so the factors are used"}[table.fresh]
    return [
        ("fused table", f"{format_bytes(table.bytes)}, {header.dtype}{state}"),
        ("tokens", f"{header.tokens:,} of {header.vocab_size:,} ({kept})"),
        ("rows", f"{len(header.layers)} blocks x {header.hidden_size} numbers, {header.row_bytes:,} bytes per token"),
        ("made for", header.base_model or "a backbone that was not recorded"),
    ]


def _card_lines(card: HeadCard) -> list[tuple[str, str]]:
    found = []
    if card.labels:
        more = f", ... ({len(card.labels)})" if len(card.labels) > SHOWN_LABELS else ""
        found.append(("labels", ", ".join(card.labels[:SHOWN_LABELS]) + more))
    if card.tokenizer_args:
        found.append(("tokenizer arguments", ", ".join(f"{name}={v}" for name, v in card.tokenizer_args.items())))
    if card.task_type == "FEATURE_EXTRACTION":
        found.append(("pooling", card.pooling))
    return found


def _head_card(folder: Path) -> tuple[HeadCard | None, str | None]:
    path = folder / HEAD_FILE
    if not path.is_file():
        return None, None
    try:
        return read_head_card(path), None
    except ValueError as error:
        return None, str(error)


def _table(folder: Path) -> TableInfo | None:
    path = folder / TABLE_FILE
    if not path.is_file():
        return None
    size = path.stat().st_size
    try:
        header = read_header(path)
    except ValueError as error:
        return TableInfo(path, size, problem=str(error))
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        return TableInfo(path, size, header)
    factors = {f"{block}.{factor}": tensor for (block, factor), tensor in read_factors(weights).items()}
    return TableInfo(path, size, header, fresh=factors_hash(factors) == header.factors_sha256)


def _weights(folder: Path, config: PeftConfig) -> tuple[int, tuple[HeadInfo, ...]]:
    """Return the bytes of the adapter's own tensors, and the heads beside them."""
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        other = folder / WEIGHTS_NAME
        return (other.stat().st_size if other.is_file() else 0), ()
    names: Sequence[str] = getattr(config, "modules_to_save", None) or ()
    own = 0
    heads: dict[str, HeadInfo] = {}
    try:
        with safe_open(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(key)  # mapped: nothing but the header is read
                module, _, kind = key.removeprefix("base_model.").removeprefix("model.").rpartition(".")
                if not set(names) & set(module.split(".")):
                    own += tensor.nbytes
                    continue
                known = heads.get(module, HeadInfo(module, (), 0))
                shape = tuple(tensor.shape) if kind == "weight" else known.shape
                heads[module] = HeadInfo(module, shape, known.bytes + tensor.nbytes)
    except SafetensorError as error:
        raise ValueError(f"expected readable weights in {weights}, got {error}; save or download it again") from error
    return own, tuple(heads.values())


def _text(value: object) -> str | None:
    return None if value is None else str(getattr(value, "value", value))
