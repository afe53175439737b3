"""Every method but AoT (see `test_trainer`) with `transformers.Trainer`: it learns, saves, and ends with the best."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import set_seed

from backbones import build
from models import METHODS, config
from test_trainer import CHECKPOINTING, DATA, losses, trainer, weights

OTHERS = [name for name in METHODS if name != "aot"]
# a network is not saved, so that training goes on with a new one
RESUMABLE = [name for name in OTHERS if not name.startswith("hiwi")]
BATCH = {key: torch.stack([example[key] for example in DATA[:5]]) for key in DATA[0]}


def fresh(method: str, seed: int = 0) -> PeftModel:
    set_seed(seed)
    return get_peft_model(build("bert"), config("bert", "SEQ_CLS", method, init_weights=True))


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("settings", [{}, {"bf16": True}, *CHECKPOINTING], ids=["fp32", "bf16", "check", "reentrant"])
def test_it_learns_and_leaves_the_backbone_alone(method: str, settings: dict[str, object], tmp_path: Path) -> None:
    model = fresh(method)
    run = trainer(model, tmp_path, max_steps=60, learning_rate=5e-2, **settings)
    batch = {k: torch.stack([example[k] for example in DATA]) for k in DATA[0]}
    with torch.no_grad():
        before = float(model.eval()(**batch).loss)
    run.train()
    with torch.no_grad():
        after = float(model.eval()(**batch).loss)
    assert after < before - 0.01, (before, after, losses(run))
    bare = dict(build("bert").named_parameters())
    for name, parameter in model.unload().named_parameters():
        assert torch.equal(parameter, bare[name]), name


@pytest.mark.parametrize("method", RESUMABLE)
def test_resuming_gives_what_an_uninterrupted_run_gives(method: str, tmp_path: Path) -> None:
    straight = fresh(method)
    trainer(straight, tmp_path / "straight").train()
    trainer(fresh(method), tmp_path / "two", save_strategy="steps", save_steps=5).train()
    again = fresh(method, seed=99)
    run = trainer(again, tmp_path / "two", save_strategy="no")
    run.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-5"))
    expected = weights(straight)
    assert set(weights(again)) == set(expected)
    for name, value in weights(again).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.filterwarnings("ignore:.*starts a new")
def test_the_best_checkpoint_is_loaded_at_the_end(method: str, tmp_path: Path) -> None:
    model = fresh(method)
    run = trainer(
        model,
        tmp_path,
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
    assert run.evaluate()["eval_loss"] == pytest.approx(evaluated[best], rel=1e-4)
    saved = PeftModel.from_pretrained(build("bert"), tmp_path / f"checkpoint-{best}")
    with torch.no_grad():
        torch.testing.assert_close(saved(**BATCH).logits, model.eval()(**BATCH).logits, atol=1e-5, rtol=1e-5)
