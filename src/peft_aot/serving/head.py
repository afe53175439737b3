"""A task's head: read from a saved adapter, and run by the class that it was trained in.

A head is whatever stands in transformers' class for a task beside the body: a linear layer, a pooler and one, a small
network. `HeadClass` is that class with nothing in the body's place but what the body has computed, so that the class's
own forward makes the logits, whatever it does. Each of its modules with parameters is a `Routed` one: every example
meets its own task's. Knows nothing of requests and queues.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from peft_aot.routing import fit_linears

from .routed import Routed

CLASSES = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}


_UNUSUAL = 1021
"""Labels of a class that is made without values: a prime, so that no other size in a head is likely to be it."""


class Body(nn.Module):
    """Stands where the body stood and returns what it has computed.

    Attributes:
        hidden: (B, T, D), the last hidden states.
        pooler: What the body makes of them besides, if it does.
    """

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.hidden = torch.empty(0)
        self.pooler = pooler

    def forward(self, *args: object, **kwargs: object) -> BaseModelOutputWithPooling:
        """Return the hidden states, whatever is asked."""
        pooled = None if self.pooler is None else self.pooler(self.hidden)
        return BaseModelOutputWithPooling(last_hidden_state=self.hidden, pooler_output=pooled)


class HeadClass:
    """Transformers' class for one kind of task on one body, without the body. For one thread at a time.

    Args:
        task_type: "SEQ_CLS" or "TOKEN_CLS".
        body: The body, whose pooler is used for tasks that have none of their own.
        pooler: The body's pooler, if its checkpoint has one.
    """

    def __init__(self, task_type: str, body: PreTrainedModel, pooler: nn.Module | None) -> None:
        config = copy.deepcopy(body.config)
        config.num_labels = self._labels = _UNUSUAL
        with torch.device("meta"):
            self.model: nn.Module = CLASSES[task_type].from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        self.model.eval().requires_grad_(False)
        prefix = str(body.base_model_prefix)
        self._body = Body(getattr(self.model.get_submodule(prefix), "pooler", None))
        setattr(self.model, prefix, self._body)
        self._shared = {} if pooler is None else {f"{prefix}.pooler": pooler}
        self.parts: dict[str, Routed] = {}
        holders = ((prefix, self._body), ("", self.model))
        for path, holder in holders:
            for name, module in list(holder.named_children()):
                if next(module.parameters(), None) is not None:
                    whole = f"{path}.{name}" if path else name
                    self.parts[whole] = Routed(module)
                    setattr(holder, name, self.parts[whole])

    def read(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, nn.Module]:
        """Make the parts of a task's head of its saved tensors.

        Args:
            tensors: What is saved beside the task's factors, by names in the class it was trained in.
            where: Where from, for messages.

        Returns:
            The task's own parts; those that the body has and all tasks share are left out.

        Raises:
            ValueError: A part is missing, or there is one that the class has not.
        """
        own: dict[str, nn.Module] = {}
        left = set(tensors)
        for path, routed in self.parts.items():
            state = {key.removeprefix(f"{path}."): t for key, t in tensors.items() if key.startswith(f"{path}.")}
            left -= {f"{path}.{key}" for key in state}
            if not state and path in self._shared:
                continue
            wanted = set(routed.like.state_dict())
            if set(state) != wanted:
                missing = sorted(wanted - set(state)) or sorted(set(state) - wanted)
                raise ValueError(
                    f"expected {path} ({', '.join(sorted(wanted))}) in the adapter {where}, got "
                    f"{'all but' if wanted - set(state) else 'also'} {missing[0]}; train it with modules_to_save that "
                    f"name {path}, on {type(self.model).__name__}"
                )
            self._check_shapes(path, state, routed.like.state_dict(), where)
            holder = nn.ModuleDict({"part": copy.deepcopy(routed.like)})
            fit_linears(holder, "part", "part", {f"part.{key}": tensor for key, tensor in state.items()})
            part = holder.get_submodule("part")
            part.load_state_dict(state, assign=True)
            own[path] = part.float().eval().requires_grad_(False)
        if left:
            raise ValueError(
                f"expected the parts {sorted(self.parts)} of {type(self.model).__name__} in the adapter {where}, got "
                f"{sorted(left)[0]}; train it on that class"
            )
        return own

    def _check_shapes(self, path: str, state: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str) -> None:
        """Refuse tensors that the class's forward could not use: only how many labels there are is a task's own."""
        labels = None
        for key, tensor in state.items():
            wanted = list(like[key].shape)
            if wanted[:1] == [self._labels] and tensor.dim():
                labels = len(tensor) if labels is None else labels
                wanted[0] = labels
            if list(tensor.shape) != wanted or not tensor.is_floating_point():
                raise ValueError(
                    f"expected {path}.{key} of shape {tuple(wanted)} and floating point in the adapter {where}, got "
                    f"{tuple(tensor.shape)}, {tensor.dtype}; train it on this backbone"
                )

    def run(self, hidden: Tensor, inputs: Mapping[str, Tensor], heads: Sequence[Mapping[str, nn.Module]]) -> Tensor:
        """Compute logits, padded with -inf where other tasks have more labels.

        Args:
            hidden: (B, T, D), the body's last hidden states.
            inputs: (B, T) each, what the body was given.
            heads: (B), each example's own parts, from `read`.

        Returns:
            float32 (B, labels), or (B, T, labels) for tokens.
        """
        self._body.hidden = hidden.float()
        for path, routed in self.parts.items():
            routed.modules_of = [head[path] if path in head else self._shared[path] for head in heads]
        try:
            logits: Tensor = self.model(**inputs).logits
            return logits
        finally:
            self._body.hidden = torch.empty(0)
            for routed in self.parts.values():
                routed.modules_of = []


def outputs_of(parts: Mapping[str, nn.Module]) -> int:
    """Return how many numbers a head answers with: the width of its last linear layer."""
    linears = [m for part in parts.values() for m in part.modules() if isinstance(m, nn.Linear)]
    return linears[-1].out_features if linears else 0
