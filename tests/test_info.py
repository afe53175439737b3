"""What is told about adapters and tables, and the two verbs that tell it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

import peft_aot
from backbones import build
from models import METHODS, adapted
from peft_aot.cli.app import main
from peft_aot.info import AdapterInfo, TableInfo, describe, lines
from peft_aot.sizes import format_bytes
from peft_aot.stored import stored_tuners
from peft_aot.tables import TABLE_FILE

FACTOR_BYTES = 2 * (32 * 4 + 4 + 4 * 32 + 32) * 4


def saved(folder: Path, **fields: object) -> Path:
    adapted("bert", **fields).save_pretrained(folder)
    return folder


def words(path: Path) -> dict[str, str]:
    return dict(lines(describe(path)))


def test_an_adapter_without_a_table(tmp_path: Path) -> None:
    info = describe(saved(tmp_path))
    assert isinstance(info, AdapterInfo)
    assert (info.method, info.task_type, info.rank, info.own_bytes) == ("AOT", "SEQ_CLS", 4, FACTOR_BYTES)
    assert [(h.name, h.shape, h.bytes) for h in info.heads] == [("classifier", (2, 32), (64 + 2) * 4)]
    assert info.table is None and info.task is None and info.base_model is None
    assert words(tmp_path) == {
        "adapter": str(tmp_path),
        "method": "AoT P-Tuning (AOT)",
        "backbone": "not recorded",
        "task": "(SEQ_CLS)",
        "rank": "4",
        "reparametrization": "FC, P = s f(E W1 + b1) W2 + b2",
        "scale s": "2",
        "blocks of the backbone": "2",
        "vocabulary": "120",
        "hidden size": "32",
        "factors": "2.34 kB",
        "head classifier": "2 x 32, 264 B",
        "labels": "LABEL_0, LABEL_1",
        "fused table": "none; `peft-aot fuse DIR` makes one",
    }


def test_an_adapter_that_is_no_lookup_is_not_offered_a_table(tmp_path: Path) -> None:
    found = words(saved(tmp_path, bottleneck_input="hidden"))
    assert "fused table" not in found and found["reparametrization"].startswith("none, s f(H W1")


def test_task_and_scores(tmp_path: Path) -> None:
    saved(tmp_path, reparam="kron")
    task = {"task": "rte", "scores": {"accuracy": 0.71, "f1": 0.5}}
    (tmp_path / "task.json").write_text(json.dumps(task), encoding="utf-8")
    found = words(tmp_path)
    assert found["task"] == "rte (SEQ_CLS)" and found["validation scores"] == "accuracy 0.7100, f1 0.5000"
    assert found["reparametrization"].startswith("Kronecker")


def test_tables(tmp_path: Path) -> None:
    saved(tmp_path, fuse_on_save=True)
    info = describe(tmp_path)
    assert isinstance(info, AdapterInfo) and info.table is not None
    assert info.table.fresh is True and info.table.bytes == (tmp_path / TABLE_FILE).stat().st_size
    found = words(tmp_path)
    assert found["fused table"].endswith("kB, float16, fresh")
    assert found["tokens"] == "120 of 120 (complete)"
    assert found["rows"] == "2 blocks x 32 numbers, 128 bytes per token"
    alone = describe(tmp_path / TABLE_FILE)
    assert isinstance(alone, TableInfo) and alone.fresh is None
    assert words(tmp_path / TABLE_FILE)["tokens"] == "120 of 120 (complete)"

    peft_aot.fuse(tmp_path, build("bert"), dtype="int8", token_ids=torch.arange(30), progress=False)
    assert words(tmp_path)["tokens"] == "30 of 120 (partial)"

    stale = (tmp_path / TABLE_FILE).read_bytes()
    saved(tmp_path, seed=9)
    (tmp_path / TABLE_FILE).write_bytes(stale)
    assert "int8, stale: made from other factors" in words(tmp_path)["fused table"]
    (tmp_path / TABLE_FILE).write_bytes(stale[:50])
    assert "not usable: expected a complete table" in words(tmp_path)["fused table"]


def test_bitfit(tmp_path: Path) -> None:
    saved(tmp_path, method="bitfit", target_modules=["query", "key"])
    info = describe(tmp_path)
    assert isinstance(info, AdapterInfo)
    assert (info.method, info.method_name, info.rank) == ("BITFIT", "BitFit", None)
    assert words(tmp_path) == {
        "adapter": str(tmp_path),
        "method": "BitFit (BITFIT)",
        "backbone": "not recorded",
        "task": "(SEQ_CLS)",
        "target modules": "key, query",
        "values": format_bytes(2 * 2 * 32 * 4),
        "head classifier": "2 x 32, 264 B",
        "labels": "LABEL_0, LABEL_1",
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_package(method: str, tmp_path: Path) -> None:
    found = words(saved(tmp_path, method=method))
    kind = METHODS[method].config().peft_type.value
    tuner = stored_tuners()[kind]
    assert found["method"] == f"{tuner.method} ({kind})" and tuner.values in found
    assert ("rank" in found) is ("r" in tuner.config_cls.__dataclass_fields__) and "r" not in found
    assert ("fused table" in found) is (method == "aot")


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        (LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query"]), "3"),
        (PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4), None),
    ],
)
def test_other_methods(settings: object, rank: str | None, tmp_path: Path) -> None:
    get_peft_model(build("bert"), settings).save_pretrained(tmp_path)
    found = words(tmp_path)
    assert found["method"] == settings.peft_type.value and found.get("rank") == rank
    own = 2 * 3 * (32 + 32) * 4 if rank else 4 * 32 * 4
    assert found["factors"] == format_bytes(own) and found["head classifier"] == "2 x 32, 264 B"
    assert "fused table" not in found and "vocabulary" not in found


def test_weights_in_the_other_format(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path, safe_serialization=False)
    info = describe(tmp_path)
    assert isinstance(info, AdapterInfo)
    assert info.own_bytes == (tmp_path / "adapter_model.bin").stat().st_size and info.heads == ()


def test_nothing_to_describe(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"expected adapter_config.json in .*none; pass a folder that save"):
            describe(path)
    saved(tmp_path)
    with pytest.raises(ValueError, match="expected a table of format version 1"):
        describe(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="expected readable weights in .*save or download it again"):
        describe(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "adapter")
    build("bert").save_pretrained(tmp_path / "backbone")
    capsys.readouterr()
    fused = ["fuse", tmp_path / "adapter", "--base-model", tmp_path / "backbone", "--dtype", "float32"]
    code, text, _ = run(capsys, *fused)
    assert code == 0 and f"table               {tmp_path / 'adapter' / TABLE_FILE}" in text
    assert "float32" in text and "120 of 120" in text
    assert "max row difference  0 from the factors" in text and "sampled tokens      120" in text
    code, text, _ = run(capsys, "info", tmp_path / "adapter")
    assert code == 0 and "fused table" in text and "float32, fresh" in text and "head classifier" in text
    code, text, _ = run(capsys, "info", tmp_path / "adapter", "--json")
    found = json.loads(text)
    assert code == 0 and found["rank"] == 4 and found["table"]["header"]["dtype"] == "float32"


def test_verbs_refuse_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    for arguments, message in (
        (["info", tmp_path / "nowhere"], "expected adapter_config.json in"),
        (["fuse", tmp_path / "nowhere"], "expected adapter_config.json in"),
        (["fuse", tmp_path], "expected a base model, got none"),
        (["fuse", tmp_path, "--base-model", "nobody/nothing"], "expected a backbone at 'nobody/nothing'"),
        (["fuse", tmp_path, "--dtype", "fp8"], "expected a known dtype"),
    ):
        code, _, error = run(capsys, *arguments)
        assert code == 2 and "error:" in error and message in error, arguments
