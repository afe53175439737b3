"""Training with `transformers.Trainer` and with a loop: it learns, saves, resumes and ends with the best."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

import peft_aot
from backbones import VOCAB, build
from peft_aot.tables import TABLE_FILE


def examples(count: int = 64) -> list[dict[str, torch.Tensor]]:
    """The label says whether token 7 occurs."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        ids = torch.randint(8, VOCAB, (6,), generator=generator)
        if i % 2:
            ids[i % 6] = 7
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(i % 2)})
    return found


DATA = examples()


def fresh(seed: int = 0, **fields: object) -> PeftModel:
    set_seed(seed)
    return get_peft_model(build("bert"), peft_aot.AoTConfig(task_type="SEQ_CLS", r=8, **fields))


def trainer(model: nn.Module, folder: Path, **settings: object) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 12,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-2,
            "lr_scheduler_type": "constant",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "logging_steps": 4,
            "save_strategy": "no",
            **settings,
        },
    )
    return Trainer(model, arguments, train_dataset=DATA, eval_dataset=DATA)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


CHECKPOINTING = [
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": r}} for r in (False, True)
]


@pytest.mark.parametrize(
    ("reparam", "settings"),
    [
        ("fc", {}),
        ("kron", {}),
        ("fc", {"bf16": True}),
        ("fc", CHECKPOINTING[0]),
        ("kron", CHECKPOINTING[1]),
        ("fc", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}),
    ],
    ids=["fc", "kron", "bf16", "checkpointing", "reentrant checkpointing", "accumulation"],
)
def test_the_loss_goes_down(settings: dict[str, object], reparam: str, tmp_path: Path) -> None:
    model = fresh(reparam=reparam)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    run = trainer(model, tmp_path, max_steps=30, **settings)
    run.train()
    found = losses(run)
    assert found[-1] < 0.6 * found[0], found
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_a_plain_loop_learns() -> None:
    model = fresh(dropout=0.0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    batch = {key: torch.stack([example[key] for example in DATA]) for key in DATA[0]}
    found = []
    for _ in range(30):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    assert found[-1] < 0.5 * found[0], found
    with torch.no_grad():
        right = model.eval()(**batch).logits.argmax(-1) == batch["labels"]
    assert right.float().mean() > 0.85


def test_checkpoints_hold_the_adapter_and_its_table(tmp_path: Path) -> None:
    model = fresh(fuse_on_save=True, table_dtype="float32")
    run = trainer(model, tmp_path, save_strategy="steps", save_steps=6)
    run.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-6"]
    checkpoint = tmp_path / "checkpoint-12"
    assert (checkpoint / TABLE_FILE).is_file() and (checkpoint / "trainer_state.json").is_file()
    loaded = PeftModel.from_pretrained(build("bert"), checkpoint)
    assert loaded.base_model.lookup.tables
    batch = {key: torch.stack([example[key] for example in DATA[:5]]) for key in DATA[0]}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits, atol=1e-5, rtol=1e-5)


def test_resuming_gives_what_an_uninterrupted_run_gives(tmp_path: Path) -> None:
    straight = fresh(fuse_on_save=True)
    trainer(straight, tmp_path / "straight").train()
    interrupted = fresh(fuse_on_save=True)
    trainer(interrupted, tmp_path / "two", save_strategy="steps", save_steps=5, max_steps=12).train()
    again = fresh(seed=99, fuse_on_save=True)
    trainer(again, tmp_path / "two", save_strategy="no").train(
        resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-5")
    )
    assert not again.base_model.lookup.tables
    expected = weights(straight)
    assert set(weights(again)) == set(expected)
    for name, value in weights(again).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    model = fresh(fuse_on_save=True)
    run = trainer(
        model,
        tmp_path,
        max_steps=12,
        learning_rate=0.5,  # so that the last is not the best
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=3,
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    run.train()
    evaluated = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert run.evaluate()["eval_loss"] == pytest.approx(evaluated[best], rel=1e-4)
    saved = PeftModel.from_pretrained(build("bert"), tmp_path / f"checkpoint-{best}", use_table=False)
    stored = {n: p for n, p in saved.named_parameters() if "aot_rows" in n}
    for name, parameter in model.named_parameters():
        if "aot_rows" in name:
            assert torch.equal(parameter, stored[name]), name


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    model = fresh(fuse_on_save=True)
    trainer(model, tmp_path / "first").train()
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "adapter", is_trainable=True)
    before = weights(loaded)
    run = trainer(loaded, tmp_path / "second", max_steps=4)
    run.train()
    after = weights(loaded)
    assert before.keys() == after.keys() and any("aot_rows" in name for name in after)
    assert all(not torch.equal(value, before[name]) for name, value in after.items() if "aot_rows" in name)
