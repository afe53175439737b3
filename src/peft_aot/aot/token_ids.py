"""Which token ids a stack of blocks is running on, known per thread and per call.

A stack (a `PreTrainedModel` that owns blocks and their input embedding) opens a `StackCall` when it is entered and
closes it when it is left, also by an exception; its embedding notes the ids it is given. `inputs_embeds` made by the
model's own embedding carry their ids with the tensor itself. Nothing here knows adapters or rows, and nothing outlives
the call: ids of an earlier call cannot be seen.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_aot.backbone import embedders
from peft_aot.routing import batch_size


class StackCall:
    """One execution of one stack.

    Attributes:
        stack: The module being executed.
        token_ids: (B, T) int64, or None while no ids are known.
        stated: Whether they were stated, so that no embedding has looked at them.
        examples: B as the stack was given it, or None if it was not given ids or embeddings.
        memo: What layers have computed for this call and share.
        at_end: What to do when the stack is left.
    """

    __slots__ = ("at_end", "examples", "memo", "stack", "stated", "token_ids")

    def __init__(self, stack: nn.Module) -> None:
        self.stack = stack
        self.token_ids: Tensor | None = None
        self.stated = False
        self.examples: int | None = None
        self.memo: dict[Any, Any] = {}
        self.at_end: list[Callable[[], None]] = []


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.calls: list[StackCall] = []
        self.given: list[Tensor] = []


_THREAD = _PerThread()


def current_call() -> StackCall | None:
    """Return the innermost stack call of this thread, or None outside any."""
    return _THREAD.calls[-1] if _THREAD.calls else None


@contextmanager
def token_ids(ids: Tensor) -> Iterator[None]:
    """State the token ids of calls that pass `inputs_embeds`.

    Only needed for embeddings that the model's own embedding layer did not just produce (projected, cloned or
    modified out of place).

    Args:
        ids: (B, T) int64, one id per embedded position.

    Example:
        >>> with peft_aot.token_ids(batch["input_ids"]):
        ...     model(inputs_embeds=embeddings)
    """
    check_ids(ids)
    _THREAD.given.append(ids)
    try:
        yield
    finally:
        _THREAD.given.pop()


def check_ids(ids: object) -> None:
    """Refuse what cannot be token ids."""
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"expected token ids as an integer tensor of shape (B, T), got {got}; pass input_ids")


def known_ids(embeddings: object, stack: nn.Module) -> Tensor | None:
    """Return the ids that an embedding of this stack's weights was given to produce this very tensor, or None."""
    note = getattr(embeddings, "_aot_token_ids", None)
    if note is None or not any(_own_weight(embedder) is note[1] for embedder in embedders(stack)):
        return None
    ids: Tensor = note[0]
    return ids


@contextmanager
def contained() -> Iterator[None]:
    """Forget at the end every stack call that was opened inside, whatever ended it.

    torch runs the hook that closes a call for an `Exception`, but not for Ctrl-C.
    """
    depth = len(_THREAD.calls)
    try:
        yield
    finally:
        del _THREAD.calls[depth:]


def watch(stack: nn.Module, model: nn.Module) -> None:
    """Make `stack` open a `StackCall` whenever it is called; watching twice changes nothing.

    In a mixed batch, trained copies of an embedding are given parts of the ids; what chooses among them notes all of
    them afterwards, if it was there to be watched.

    Args:
        stack: Owns blocks.
        model: The whole model, whose own input embedding may be another module than the stack's (T5, BART).
    """
    if _open_call not in stack._forward_pre_hooks.values():
        stack.register_forward_pre_hook(_open_call, with_kwargs=True)
        stack.register_forward_hook(_close_call, always_call=True)
    for embedder in (*embedders(stack), *embedders(model)):
        if _note_ids not in embedder._forward_hooks.values():
            embedder.register_forward_hook(_note_ids, with_kwargs=True)


def unwatch(model: nn.Module) -> None:
    """Remove from `model` everything that `watch` has put there."""
    for module in model.modules():
        for hooks, ours in (
            (module._forward_pre_hooks, _open_call),
            (module._forward_hooks, _close_call),
            (module._forward_hooks, _note_ids),
        ):
            for key in [k for k, hook in hooks.items() if hook is ours]:
                del hooks[key]
                # torch keeps the options of a hook beside it, under the same key
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def _open_call(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    call = StackCall(stack)
    _THREAD.calls.append(call)  # first of all, since `_close_call` runs even if what follows raises
    call.examples = batch_size(args, kwargs)
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is None and args and not torch.compiler.is_compiling():
        bound = inspect.signature(stack.forward).bind_partial(*args)
        embeddings = bound.arguments.get("inputs_embeds")
    if embeddings is not None:
        ids = known_ids(embeddings, stack)
        if ids is None and _THREAD.given:
            ids = _THREAD.given[-1]
            times, rest = divmod(embeddings.shape[0], ids.shape[0])
            if rest or embeddings.shape[1] != ids.shape[1]:
                raise ValueError(
                    f"expected token ids for inputs_embeds of shape {tuple(embeddings.shape[:2])}, got ids of shape "
                    f"{tuple(ids.shape)}; pass one id per embedded position"
                )
            ids = ids.repeat_interleave(times, dim=0)
            call.stated = True
        call.token_ids = ids


def _close_call(stack: nn.Module, args: tuple[Any, ...], output: object) -> None:
    for end in _THREAD.calls.pop().at_end:
        end()


def _note_ids(embedder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    ids: Tensor = args[0] if args else kwargs["input"]
    call = current_call()
    if call is not None:
        call.token_ids = ids
    elif isinstance(output, Tensor) and not torch.compiler.is_compiling():
        # a copy, since the caller may use its buffer again
        output._aot_token_ids = (ids.clone(), _own_weight(embedder))  # type: ignore[attr-defined]


def _own_weight(embedder: nn.Module) -> Tensor | nn.Module:
    """Return the weight of an embedding or, of what chooses among trained copies of one, that of the frozen one."""
    return embedder.original_module.weight if isinstance(embedder, ModulesToSaveWrapper) else embedder.weight
