"""The configuration of AoT P-Tuning. Knows which values make sense together, not what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from peft.config import PeftConfig
from peft.utils import PeftType

from peft_aot.ops import ACTIVATIONS
from peft_aot.suggestions import did_you_mean
from peft_aot.tables.format import ROW_DTYPES

DEFAULT_ALPHA = 8.0
"""What won in the ablations (docs/ablations.md)."""

CANNOT_FUSE_HIDDEN = (
    "expected an adapter whose rows depend on the token id alone, so that a table can hold them, got "
    "bottleneck_input='hidden', which depends on the hidden state"
)


@dataclass
class AoTConfig(PeftConfig):
    """Configuration of AoT P-Tuning (Gavrilov and Balagansky, arXiv 2305.10835).

    Every field is described in its `metadata`. `vocab_size`, `token_dim` and `num_layers` are filled in from the
    backbone, saved, and compared with the backbone the adapter is loaded into.

    Raises:
        ValueError: A value out of range; the message says what was expected and what to do.
    """

    r: int = field(default=64, metadata={"help": "Rank of the reparametrization; it costs nothing once fused."})
    reparam: Literal["fc", "kron", "constant"] = field(
        default="fc",
        metadata={
            "help": "How tables are parametrized in training: 'fc' (equation 3), 'kron' (equation 2) or, as a control, "
            "'constant': one bias per block, whatever the token, for which r, activation and dropout mean nothing."
        },
    )
    bottleneck_input: Literal["embeddings", "random", "hidden"] = field(
        default="embeddings",
        metadata={
            "help": "What 'fc' is fed: the backbone's 'embeddings' or, as controls, frozen 'random' vectors by token "
            "id, or the 'hidden' state itself, which is no lookup and so cannot be fused."
        },
    )
    alpha: float | None = field(
        default=None,
        metadata={
            "help": "Rows, but for b2, are scaled by alpha / r, so that one learning rate suits every rank; by "
            "default 8."
        },
    )
    kron_shape: tuple[int, int] | None = field(
        default=None,
        metadata={"help": "(a, b) with a * b >= vocabulary, for 'kron'; by default the most square such pair."},
    )
    activation: str = field(default="gelu", metadata={"help": f"Nonlinearity of 'fc', one of {sorted(ACTIVATIONS)}."})
    dropout: float = field(
        default=0.0, metadata={"help": "In training: on the embeddings before W1 ('fc') or on the row ('kron')."}
    )
    normalize_embeddings: bool = field(
        default=True, metadata={"help": "Scale each embedding to unit length before W1 ('fc')."}
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Blocks that get a table: names, endings of names, or a regex; by default all."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Blocks that get none: names, endings of names, or a regex."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the blocks that get a table; by default all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the lists of blocks that `layers_to_transform` counts in."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save beside the tables, such as a head."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start with P = 0; False starts with random rows (for tests)."}
    )
    fuse_on_save: bool = field(
        default=False, metadata={"help": "`save_pretrained` also writes the fused table, aot_table.safetensors."}
    )
    table_dtype: str = field(
        default="float16", metadata={"help": f"Number format of the fused table, one of {sorted(ROW_DTYPES)}."}
    )
    vocab_size: int | None = field(default=None, metadata={"help": "V of the backbone; filled in."})
    token_dim: int | None = field(default=None, metadata={"help": "D of the backbone; filled in."})
    num_layers: int | None = field(default=None, metadata={"help": "Number of blocks of the backbone; filled in."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType["AOT"]
        if isinstance(self.target_modules, (list, tuple, set)):
            self.target_modules = sorted(self.target_modules)
        if self.kron_shape is not None:
            self.kron_shape = _pair("kron_shape", self.kron_shape)
        self._check()

    def _check(self) -> None:
        if type(self.r) is not int or self.r <= 0:
            raise ValueError(f"expected r to be a positive integer, got {self.r!r}; 64 is a good start")
        _check_choice("reparam", self.reparam, ["constant", "fc", "kron"])
        self._check_bottleneck_input()
        _check_choice("activation", self.activation, sorted(ACTIVATIONS))
        _check_choice("table_dtype", self.table_dtype, sorted(ROW_DTYPES))
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"expected dropout in [0, 1), got {self.dropout!r}; 0 switches it off")
        if self.alpha is not None and not (isinstance(self.alpha, (int, float)) and 0.0 < self.alpha < float("inf")):
            raise ValueError(
                f"expected alpha to be a positive number, got {self.alpha!r}; leave it out for the default"
            )
        if self.kron_shape is not None:
            if self.reparam != "kron":
                raise ValueError(
                    f"expected kron_shape only with reparam='kron', got it with reparam={self.reparam!r}; remove one"
                )
            if min(self.kron_shape) <= 0:
                raise ValueError(f"expected kron_shape of positive integers, got {self.kron_shape}; leave it out")
            self.check_kron_shape()
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "expected target_modules to be a list with layers_to_transform, got a regex; select the blocks with one"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("expected layers_pattern only with layers_to_transform, got it alone; pass both")

    def _check_bottleneck_input(self) -> None:
        _check_choice("bottleneck_input", self.bottleneck_input, ["embeddings", "hidden", "random"])
        if self.bottleneck_input != "embeddings" and self.reparam != "fc":
            raise ValueError(
                f"expected bottleneck_input={self.bottleneck_input!r} only with reparam='fc', got it with "
                f"reparam={self.reparam!r}; remove one"
            )
        if self.bottleneck_input == "hidden" and self.fuse_on_save:
            raise ValueError(f"{CANNOT_FUSE_HIDDEN}; leave fuse_on_save out")

    @property
    def scale(self) -> float:
        """The factor alpha / r of the rows."""
        return (DEFAULT_ALPHA if self.alpha is None else self.alpha) / self.r

    @property
    def backbone_sizes(self) -> dict[str, int | None]:
        """The sizes of its backbone that are filled in, by field."""
        return {name: getattr(self, name) for name in ("vocab_size", "token_dim", "num_layers")}

    def check_backbone(self, sizes: Mapping[str, int | None], model: str) -> None:
        """Refuse a backbone of other sizes than those that are filled in."""
        for name, value in sizes.items():
            expected = getattr(self, name)
            if expected is not None and expected != value:
                resized = f", or call resize_token_embeddings({expected}) if that one was resized"
                raise ValueError(
                    f"expected a backbone with {name}={expected}, got {name}={value} in {model}; load the backbone "
                    f"this adapter was trained on"
                    f"{f', {self.base_model_name_or_path}' if self.base_model_name_or_path else ''}"
                    f"{resized if name == 'vocab_size' else ''}"
                )

    def check_alpha(self) -> None:
        """Refuse a saved adapter that is older than `alpha`."""
        if self.alpha is None and self.vocab_size is not None:
            raise ValueError(
                "expected an adapter with alpha in its configuration, got one of an early version without, whose "
                "rows were scaled in another way; train it again"
            )

    def check_kron_shape(self) -> None:
        """Refuse a `kron_shape` whose product does not cover the vocabulary, as soon as that is known."""
        if self.kron_shape is None or self.vocab_size is None:
            return
        a, b = self.kron_shape
        if a * b < self.vocab_size:
            raise ValueError(
                f"expected kron_shape (a, b) with a * b >= {self.vocab_size} (the vocabulary), got "
                f"{a} * {b} = {a * b}; raise one of them or leave kron_shape out"
            )


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or [type(part) for part in value] != [int, int]:
        raise ValueError(f"expected {name} to be a pair of integers (a, b), got {value!r}; leave it out for a default")
    return value[0], value[1]


def _check_choice(name: str, value: object, choices: list[str]) -> None:
    if value in choices:
        return
    raise ValueError(f"expected a known {name}, got {value!r}; {did_you_mean(str(value), choices)}")


def as_aot(config: PeftConfig) -> AoTConfig:
    """Return `config`, of which PEFT only knows that it is a `PeftConfig`."""
    if not isinstance(config, AoTConfig):
        raise TypeError(f"expected an AoTConfig, got {type(config).__name__}; do not mix methods in one model")
    return config
