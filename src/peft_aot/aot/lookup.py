"""Rows for one call: distinct tokens once per stack, tables where there are any, factors elsewhere.

Every block's layer asks the `Lookup` that its tuner's layers share. It knows adapters' tables and which tokens a call
runs on; how rows are computed or stored is the business of `reparam` and `tables`. In inference the first block that
asks has the rows of all blocks of its stack gathered (`staged_rows`), so that all that is left to a block is one
look-up and one addition, however many tasks a batch mixes. In training and in compiled graphs each block's modules
compute its own.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from peft_aot.routing import Tasks, tasks_of
from peft_aot.tables import Table, TableChanged
from peft_aot.tuner import TaskTuner

from .arena import ArenaRows, Residents
from .banked import drop_table
from .block_rows import BlockCall, add_block_rows
from .placement import Placement
from .plan import Asked, Plan, ask, check_ids, group_examples, make_plan
from .prefetch import Prefetched, current
from .reparam import HiddenBottleneck
from .source_rows import TaskRows, rows_in_memory
from .stack_rows import StackRows, State, version
from .stage import Buffers
from .staged_rows import StagedRows
from .token_ids import StackCall, current_call
from .transfer import CudaStreams, Streams


class Lookup:
    """What the AoT layers of one tuner share: tables, and one plan per stack call.

    Args:
        tuner: The tuner that owns the layers; identifies the calls that concern them.

    Attributes:
        tables: Fused tables by adapter name.
        stacks: The wrapped blocks, by stack.
        vocab_sizes: V by adapter name.
        placement: Where rows are kept.
    """

    def __init__(self, tuner: TaskTuner) -> None:
        self.tuner = tuner
        self.tables: dict[str, Table] = {}
        self.stacks: list[StackRows] = []
        self.vocab_sizes: dict[str, int] = {}
        self._versions: dict[str, tuple[int, ...]] = {}
        self.placement = Placement()
        self._residents = Residents(None)
        self._buffers = Buffers()
        self._streams: dict[torch.device, Streams] = {}
        self._like: dict[nn.Module, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # copied tensors count their versions anew, so that a copy keeps only tables that are fresh now
        fresh = {name: table for name, table in self.tables.items() if self._unchanged(name)}
        return {**self.__dict__, "tables": fresh, "_versions": {}, "_streams": {}, "_like": {}}

    def add_layer(self, stack: nn.Module, block: str, modules: nn.ModuleDict, width: int) -> None:
        """Note one more wrapped block of a stack."""
        known = next((known for known in self.stacks if known.stack is stack), None)
        if known is None:
            known = StackRows(stack)
            self.stacks.append(known)
        known.add(block, modules, width)
        self._share_budget()

    def place(self, placement: Placement) -> None:
        """Keep rows elsewhere from now on; see `Placement`."""
        self.placement = placement
        self._residents = Residents(placement.budget)
        self._share_budget()

    @property
    def page_bytes(self) -> int:
        """Bytes that the rows of one token may take."""
        return sum(stack.page_bytes for stack in self.stacks)

    def _share_budget(self) -> None:
        budget = None if self.placement.keeps_tables(torch.device("cpu")) else self.placement.budget
        for stack in self.stacks:
            stack.budget = None if budget is None else budget * stack.page_bytes // self.page_bytes
            stack.cache = None

    def modules_of(self, adapter_name: str) -> list[nn.Module]:
        """Return the adapter's modules, one per wrapped block, stack by stack."""
        return [module for stack in self.stacks for module in stack.modules_of(adapter_name)]

    def attach(self, adapter_name: str, table: Table) -> None:
        """Use `table` for an adapter in inference, until its factors or the embeddings they are fed change."""
        self.tables[adapter_name] = table
        self._versions[adapter_name] = self.state_of(adapter_name).versions

    def fresh_table(self, adapter_name: str) -> Table | None:
        """Return an adapter's table if it has one, and its factors have not changed since."""
        table = self.tables.get(adapter_name)
        return table if table is not None and self._unchanged(adapter_name) else None

    def detach(self, adapter_name: str) -> None:
        """Forget an adapter's table, if it has one, and rows computed for it before."""
        self.tables.pop(adapter_name, None)
        self._versions.pop(adapter_name, None)
        for stack in self.stacks:
            stack.forget(adapter_name)

    def add(self, block: str, hidden: Tensor, rows: nn.ModuleDict, active: tuple[str, ...]) -> Tensor:
        """Add to hidden states (B, T, D) the rows of their tokens before block `block`.

        Args:
            block: The block's name.
            hidden: (B, T, D).
            rows: The block's modules by adapter name.
            active: The adapters whose rows to add, unless the call is a mixed batch.
        """
        call = current_call()
        if call is None:
            raise RuntimeError(
                f"expected block {block} to run inside its model, got a direct call; call the model, which knows the "
                f"token ids"
            )
        if tasks_of(self.tuner) is not None:
            active = ()  # which may differ from block to block, and mean nothing here
        ready = self._ready(call, hidden, active)
        if ready is not None:
            return ready.add(block, hidden)
        plan = self._plan(call, self._asked(call, hidden, active))
        return add_block_rows(hidden, block, rows, BlockCall(call, plan, self))

    def _asked(self, call: StackCall, hidden: Tensor, active: tuple[str, ...]) -> Asked:
        key = ("asked", active)
        asked: Asked | None = call.memo.get(key)
        if asked is None:
            asked = call.memo[key] = ask(call, hidden, active, self.tuner)
        return asked

    def _plan(self, call: StackCall, asked: Asked) -> Plan:
        key = ("plan", asked.groups)
        plan: Plan | None = call.memo.get(key)
        if plan is None:
            plan = call.memo[key] = make_plan(asked, self.vocab_sizes)
        return plan

    def _ready(self, call: StackCall, hidden: Tensor, active: tuple[str, ...]) -> ArenaRows | StagedRows | None:
        """Return the rows of the running stack, or None where each block's modules compute its own."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None
        key = ("rows", active, hidden.dtype, hidden.device)
        if key not in call.memo:
            call.memo[key] = self._make_ready(call, hidden, active)
        ready: ArenaRows | StagedRows | None = call.memo[key]
        return ready

    def _make_ready(self, call: StackCall, hidden: Tensor, active: tuple[str, ...]) -> ArenaRows | StagedRows | None:
        layers = next((layers for layers in self.stacks if layers.stack is call.stack), None)
        asked = self._asked(call, hidden, active)
        if layers is None or self._modules_compute(call, asked):
            return None
        handle = None if "handle" in call.memo else current(call.stack)
        fetched = None
        if handle is not None:
            call.memo["handle"] = handle  # for the first block that asks; others may have other adapters active
            fetched = handle.take(asked, hidden, self._states(call, asked))
        like = self._like.get(call.stack)
        if like is None or (like.dtype, like.device) != (hidden.dtype, hidden.device):
            self._like[call.stack] = hidden.new_empty(0, hidden.shape[-1])
        ready = fetched or self._gathered(call, asked, layers, hidden)
        if isinstance(ready, StagedRows):
            call.at_end.append(ready.give_back)
        return ready

    def _gathered(self, call: StackCall, asked: Asked, layers: StackRows, like: Tensor) -> ArenaRows | StagedRows:
        """Return the rows of a call, in the format and on the device of `like`."""
        sources = [
            [self._source(call, asked, layers, name) for name in group if self._has_rows(asked, name)]
            for group in asked.groups
        ]
        if self.placement.keeps_tables(like.device):
            resident = rows_in_memory(asked, sources, layers, like, self._residents)
            if resident is not None:
                check_ids(asked, self.vocab_sizes)
                return resident
        streams = self._streams_for(like.device) if self.placement.stages(like.device) else None
        return StagedRows(self._plan(call, asked), sources, layers, like, self._buffers, streams)

    def prefetch(self, tasks: Tasks | None, ids: Tensor, active: tuple[str, ...]) -> Prefetched:
        """Fetch the rows of a batch that will run later.

        Args:
            tasks: Of a mixed batch.
            ids: (B, T), what its first stack will embed.
            active: The active adapters, if it is no mixed batch.
        """
        layers = self.stacks[0]
        asked = group_examples(ids.clone(), tasks, active, layers.stack)  # the caller may use its buffer again
        like, call = self._like.get(layers.stack), StackCall(layers.stack)
        if like is None:
            like = torch.empty(0, layers.width, dtype=asked.embedding.weight.dtype, device=ids.device)
        rows = None
        if not self._modules_compute(call, asked):
            rows = self._gathered(call, asked, layers, like)
            if isinstance(rows, StagedRows):
                rows.gather()
        names = None if tasks is None else tasks.names
        states = self._states(call, asked)
        return Prefetched(
            asked, (ids, version(ids)), names, layers.stack, states, rows if isinstance(rows, StagedRows) else None
        )

    def _states(self, call: StackCall, asked: Asked) -> dict[str, State]:
        names = itertools.chain(*asked.groups)
        return {name: self._state(call, name) for name in names if name not in asked.banked}

    def _streams_for(self, device: torch.device) -> Streams | None:
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = CudaStreams(device)
        return self._streams[device]

    def _modules_compute(self, call: StackCall, asked: Asked) -> bool:
        """Whether gradients may be wanted, or dropout acts."""
        for name in itertools.chain(*asked.groups):
            if name not in asked.banked:
                state = self._state(call, name)
                if state.drops or (state.trains and torch.is_grad_enabled()):
                    return True
        return False

    def _has_rows(self, asked: Asked, name: str) -> bool:
        if name in asked.banked:
            return True
        modules = self.modules_of(name)
        return bool(modules) and not isinstance(modules[0], HiddenBottleneck)

    def _source(self, call: StackCall, asked: Asked, layers: StackRows, name: str) -> TaskRows:
        task, let_go = asked.banked.get(name), functools.partial(self.let_go, name)
        if task is not None:
            table = task.table if self.placement.uses_tables else None
            return TaskRows(layers, table, functools.partial(task.factors_for, layers), let_go)
        return TaskRows(layers, self.usable_table(call, name), functools.partial(layers.factors_of, name), let_go)

    def let_go(self, name: str, table: Table, error: TableChanged) -> None:
        """Use a table no longer, whose file was written to; the first to notice says so."""
        if self.tables.get(name) is table:
            self.detach(name)
        elif not self.tuner.change_banked(functools.partial(drop_table, name, table)):
            return
        warnings.warn(f"{error}. Until then the factors are used.", stacklevel=2)

    def usable_table(self, call: StackCall, name: str) -> Table | None:
        """Return an adapter's table if it may be used in a call: never where its factors train or have changed."""
        table = self.tables.get(name)
        if table is None or not self.placement.uses_tables:
            return None
        state = self._state(call, name)
        compiling = torch.compiler.is_compiling()
        if (torch.is_grad_enabled() or compiling) and state.trains:
            return None
        if compiling or self._versions.setdefault(name, state.versions) == state.versions:
            return table
        self.detach(name)
        warnings.warn(
            f"the factors of adapter '{name}' have changed since its fused table was loaded, or the embeddings that "
            f"they are fed; the factors are used, save the adapter to fuse them again",
            stacklevel=2,
        )
        return None

    def _state(self, call: StackCall, name: str) -> State:
        key = ("state", name)
        state: State | None = call.memo.get(key)
        if state is None:
            state = call.memo[key] = self.state_of(name)
        return state

    def state_of(self, name: str) -> State:
        """Return what may have changed about an adapter's factors; see `State`."""
        if len(self.stacks) == 1:
            return self.stacks[0].state_of(name)
        states = [stack.state_of(name) for stack in self.stacks]
        versions = tuple(itertools.chain.from_iterable(state.versions for state in states))
        return State(any(state.trains for state in states), any(state.drops for state in states), versions)

    def _unchanged(self, name: str) -> bool:
        found = self.state_of(name).versions
        return self._versions.setdefault(name, found) == found
