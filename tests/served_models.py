"""Tiny backbones with a tokenizer, tasks of every kind on them, and what each answers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from backbones import CONFIGS
from peft_aot import AoTConfig

WORDS = "the a cat dog sat ran on mat in rome paris anna paul is was good bad film very not how far moon".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXTS = [
    "the cat sat",
    "anna ran in rome",
    "how far is the moon",
    "a very very good film",
    "paul was not in paris , the dog was",
    "bad",
]
CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": AutoModel,
}
KINDS: dict[str, dict[str, Any]] = {
    "trec": {"labels": ["number", "place", "person", "thing", "reason"], "fields": {"r": 3}},
    "topics": {"labels": ["film", "travel", "pets"], "problem_type": "multi_label_classification"},
    "score": {"labels": ["LABEL_0"], "problem_type": "regression", "fields": {"reparam": "kron", "r": 2}},
    "names": {"labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], "task_type": "TOKEN_CLS"},
    "vectors": {"task_type": "FEATURE_EXTRACTION"},
    "sentiment": {"labels": ["bad", "good"]},
    "fused": {"labels": ["no", "maybe", "yes"], "fields": {"fuse_on_save": True}},
}


@dataclass(frozen=True)
class Saved:
    """Folders of a backbone and of tasks on it."""

    backbone: Path
    tasks: dict[str, Path]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with the special tokens of BERT."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, ","])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=40,
    )


def save_backbone(name: str, folder: Path) -> Path:
    """Save a tiny backbone of an architecture, with its tokenizer."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer = make_tokenizer()
    if name in {"roberta", "mpnet", "distilbert", "modernbert"}:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def save_task(backbone: Path, kind: str, folder: Path, seed: int, **more: Any) -> Path:
    """Save an adapter whose values are random, all of them, so that no answer is by chance another task's."""
    told = KINDS[kind]
    task_type, labels = told.get("task_type", "SEQ_CLS"), told.get("labels", [])
    head: dict[str, Any] = {}
    if labels:
        head = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": told.get("problem_type"),
        }
    torch.manual_seed(seed + 1)
    model, report = CLASSES[task_type].from_pretrained(backbone, output_loading_info=True, **head)
    new = sorted({key.rpartition(".")[0].split(".")[0] for key in report["missing_keys"]}) if labels else None
    new = [name for name in new or [] if name != getattr(model, "base_model_prefix", "")] or None
    config = AoTConfig(task_type=task_type, modules_to_save=new, **{**told.get("fields", {}), **more})
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(folder)
    return folder


def alone(saved: Saved, kind: str, text: str, pair: str | None = None) -> np.ndarray[Any, Any]:
    """What a task computes for one text, loaded as PEFT users load it: logits, or (T, D) hidden states."""
    told = KINDS[kind]
    task_type, labels = told.get("task_type", "SEQ_CLS"), told.get("labels", [])
    model = CLASSES[task_type].from_pretrained(saved.backbone, **({"num_labels": len(labels)} if labels else {}))
    adapted = PeftModel.from_pretrained(model, saved.tasks[kind]).eval()
    inputs = AutoTokenizer.from_pretrained(saved.backbone)(text, pair, return_tensors="pt", truncation=True)
    with torch.no_grad():
        output = adapted(**inputs)
    found = output.logits if labels else output.last_hidden_state
    return found[0].float().numpy()
