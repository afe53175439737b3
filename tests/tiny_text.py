"""A tiny BERT with a tokenizer, and tiny data sets, written to disk: what the application layer's tests run on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

COLOURS = ("red", "green", "blue", "yellow")
ANIMALS = ("dog", "cat", "horse", "bird")
FILLERS = ("the", "a", "is", "was", "very", "here", "there", "now", "what", "happened", "as", "result", "cause")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_backbone(folder: Path, positions: int = 64) -> Path:
    """Write a BERT of two layers without a pooler's or a head's weights, and its WordPiece tokenizer."""
    vocabulary = {
        word: index for index, word in enumerate((*SPECIAL, *COLOURS, *ANIMALS, *FILLERS, ".", "?", ":", "*"))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=positions,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    model = BertModel(config, add_pooling_layer=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero in fresh models, as in no trained one
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def colour_rows(count: int) -> list[tuple[str, str]]:
    """Sentences whose label is "warm" for red and yellow, "cold" for green and blue."""
    rows = []
    for index in range(count):
        colour = COLOURS[index % 4]
        animal = ANIMALS[(index // 4) % 4]
        filler = FILLERS[(index // 16) % len(FILLERS)]
        rows.append((f"{filler} {animal} is {colour}", "warm" if colour in ("red", "yellow") else "cold"))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    """Write rows of two values without commas."""
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
