"""A configuration in words, for `info` and for model cards."""

from __future__ import annotations

from .config import AoTConfig


def settings(config: AoTConfig) -> dict[str, str]:
    """Return what is worth telling of a configuration, by name."""
    rank = {"rank": "none"} if config.reparam == "constant" else {}  # `r` means nothing there
    return {
        **rank,
        "reparametrization": _formula(config),
        "scale s": f"{config.scale:g}",
        "blocks of the backbone": str(config.num_layers or "not recorded"),
        "vocabulary": "not recorded" if config.vocab_size is None else f"{config.vocab_size:,}",
        "hidden size": str(config.token_dim or "not recorded"),
    }


def summary(config: AoTConfig) -> str:
    """Return the same in a few words, for model cards."""
    blocks, rank = f"{config.num_layers} blocks", f"rank {config.r}"
    if config.bottleneck_input == "hidden":
        return f"a control without lookup: a bottleneck on the hidden state, {rank}, {blocks}"
    if config.reparam == "constant":
        return f"a control: the same row for every token id, {blocks}"
    control = "a control: random vectors in place of embeddings, " if config.bottleneck_input == "random" else ""
    kind = "Kronecker" if config.reparam == "kron" else "FC"
    return f"a row per token id, {control}{kind} reparametrization, {rank}, {blocks}, vocabulary {config.vocab_size}"


def _formula(config: AoTConfig) -> str:
    if config.reparam == "kron":
        return "Kronecker, P = s (W_L (x) W_M) W_R"
    if config.reparam == "constant":
        return "constant, P = b2 for every token (a control)"
    return {
        "embeddings": "FC, P = s f(E W1 + b1) W2 + b2",
        "random": "FC, P = s f(E W1 + b1) W2 + b2 with frozen random vectors for E (a control)",
        "hidden": "none, s f(H W1 + b1) W2 + b2 of the hidden state H: no lookup (a control)",
    }[config.bottleneck_input]
