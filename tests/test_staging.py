"""A save that is interrupted anywhere leaves the old adapter or the new one, complete."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import WEIGHTS_NAME

from backbones import build, inputs, output
from interruption import killed_at, stopped_at
from models import adapted, config
from peft_aot import staging
from peft_aot.staging import READY, WRITING, finish, staged
from peft_aot.tables import TABLE_FILE

BATCH = inputs("bert", "SEQ_CLS")
OLD = {"config": "old", "weights": "old", "table": "old"}
NEW = {"config": "new", "weights": "new", "sub/extra": "new"}
TWO = {"config": "new", "weights": "new"}
LATER = {"config": "later", "weights": "later", "table": "later"}


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing is a step to be killed at; waiting for the disk is not."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def put(folder: Path, files: dict[str, str]) -> None:
    with staged(folder, "config", remove=["table"]) as inside:
        for name, text in files.items():
            path = inside / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def files_of(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        hidden = [part for part in path.relative_to(folder).parts if part.startswith((READY, WRITING))]
        if path.is_file() and not hidden:
            found[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    return found


def old_folder(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    put(folder, OLD)
    (folder / "notes").write_text("mine", encoding="utf-8")
    return folder


def test_new_files_replace_old_ones_and_nothing_else(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "adapter")
    put(folder, NEW)
    assert files_of(folder) == {**NEW, "notes": "mine"}, "the table went away, notes stayed"
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_killed_at_every_step_while_saving(no_waiting: None, tmp_path: Path) -> None:
    seen = set()
    for step in itertools.count():
        folder = old_folder(tmp_path / "adapter")
        killed = stopped_at(step, lambda folder=folder: put(folder, NEW))
        marker = (folder / "config").read_text(encoding="utf-8")  # a reader reads it first
        finish(folder, "config")
        expected = {"old": OLD, "new": NEW}[marker]
        assert files_of(folder) == {**expected, "notes": "mine"}, step
        seen.add(marker)
        put(folder, LATER)
        later = {name: text for name, text in files_of(folder).items() if name != "sub/extra"}
        assert later == {**LATER, "notes": "mine"}, "what was left over must not come back"
        assert not (folder / READY).exists()
        if not killed:
            break
    assert seen == {"old", "new"}
    assert step > 10, "there are that many steps at least, or this test kills nothing"


def test_files_may_be_read_by_whoever_may_read_the_marker(tmp_path: Path) -> None:
    with staged(tmp_path, "config") as inside:
        for name, mode in (("config", 0o640), ("weights", 0o600)):
            (inside / name).touch()
            (inside / name).chmod(mode)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_an_adapter_may_be_read_by_others(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()}
    assert len(modes) > 3 and set(modes.values()) == {modes["adapter_config.json"]}


@pytest.mark.parametrize("recovery", ["finish", "save again"])
def test_killed_again_while_recovering(recovery: str, no_waiting: None, tmp_path: Path) -> None:
    for first in itertools.count():
        left = old_folder(tmp_path / "left")
        if not stopped_at(first, lambda left=left: put(left, TWO)):
            break
        marker = (left / "config").read_text(encoding="utf-8")
        before = {"old": OLD, "new": TWO}[marker]
        for second in itertools.count():
            folder = tmp_path / "again"
            shutil.copytree(left, folder)

            def recover(folder: Path = folder) -> None:
                if recovery == "finish":
                    finish(folder, "config")
                else:
                    put(folder, LATER)

            killed = stopped_at(second, recover)
            marker = (folder / "config").read_text(encoding="utf-8")
            finish(folder, "config")
            expected = {**(LATER if marker == "later" else before), "notes": "mine"}
            assert files_of(folder) == expected, (first, second)
            shutil.rmtree(folder)
            if not killed:
                break


def test_a_reader_does_not_disturb_a_save_in_progress(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "adapter")
    with staged(folder, "config", remove=["table"]) as inside:
        for name, text in NEW.items():
            (inside / name).parent.mkdir(exist_ok=True)
            (inside / name).write_text(text, encoding="utf-8")
        finish(folder, "config")  # as another process that loads the adapter does
        assert files_of(folder) == {**OLD, "notes": "mine"}
    assert files_of(folder) == {**NEW, "notes": "mine"}


def test_two_processes_saving_into_one_folder_leave_one_complete_save(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, peft_aot.staging as s\n"
        "folder, word = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "for _ in range(40):\n"
        "    with s.staged(folder, 'config', remove=['table']) as inside:\n"
        "        [(inside / name).write_text(word) for name in ('config', 'weights', word)]\n"
    )
    folder = old_folder(tmp_path / "adapter")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(folder), word]) for word in ("one", "two")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    found = files_of(folder)
    assert found["config"] == found["weights"] and found["notes"] == "mine" and "table" not in found
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_killed_process_was_writing_is_discarded_by_the_next_save(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "adapter")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    (folder / f"{WRITING}.{host}.{dead.pid}.abcd").mkdir()
    alive = folder / f"{WRITING}.{host}.{os.getpid()}.abcd"
    alive.mkdir()
    put(folder, NEW)
    assert list(folder.glob(f"{WRITING}*")) == [alive]


def test_an_exception_while_writing_leaves_the_old_files(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "adapter")
    with pytest.raises(OSError, match="disk full"), staged(folder, "config") as inside:
        (inside / "config").write_text("half", encoding="utf-8")
        raise OSError("disk full")
    assert files_of(folder) == {**OLD, "notes": "mine"} and not list(folder.glob(f"{WRITING}*"))


def test_the_marker_must_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"expected config among the files to save, got \['weights'\]"),
        staged(tmp_path / "adapter", "config") as inside,
    ):
        (inside / "weights").touch()


def test_every_file_is_flushed_before_the_save_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(staging, "flush", lambda path: flushed.append(path.name))
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError("stop here")))
    with pytest.raises(OSError, match="stop here"):
        put(tmp_path / "adapter", {"config": "c", "weights": "w"})
    assert {"config", "weights"} <= set(flushed) and any(name.startswith(WRITING) for name in flushed)


# with real adapters


VERSIONS = {"aot": ("r", [2, 6]), "bitfit": ("target_modules", [["query"], ["key"]])}


@pytest.mark.parametrize(
    ("method", "fused"),
    [("aot", True), pytest.param("aot", False, marks=pytest.mark.slow), ("bitfit", False)],
)
def test_an_adapter_killed_at_every_step(method: str, fused: bool, tmp_path: Path) -> None:
    field, values = VERSIONS[method]
    tables = {"fuse_on_save": True, "table_dtype": "float32"} if method == "aot" else {}
    old, new = (
        adapted("bert", num_labels=labels, seed=labels, method=method, **{field: value}, **tables)
        for labels, value in zip((2, 3), values, strict=True)
    )
    options = {"fuse": fused} if method == "aot" else {}
    old.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "notes.txt").write_text("mine", encoding="utf-8")
    with torch.no_grad():
        expected = [output(old, BATCH), output(new, BATCH)]
    seen = set()
    for step in itertools.count():
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        killed = killed_at(step, lambda folder=folder: new.save_pretrained(folder, **options))
        loaded = PeftModel.from_pretrained(build("bert"), folder)
        tuner, config = loaded.base_model, loaded.peft_config["default"]
        which = values.index(getattr(config, field))
        with torch.no_grad():
            torch.testing.assert_close(output(loaded, BATCH), expected[which], atol=1e-5, rtol=1e-5)
        if method == "aot":
            assert bool(tuner.lookup.tables) is (fused or which == 0), "its own table, or none"
        assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
        assert tuner.summary(config) in (folder / "README.md").read_text(encoding="utf-8")
        seen.add(which)
        if not killed:
            break
    assert seen == {0, 1}


def test_several_adapters_in_one_save(tmp_path: Path) -> None:
    model = adapted("bert", fuse_on_save=True)
    model.add_adapter("other", config("bert", "SEQ_CLS", reparam="kron"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / TABLE_FILE).is_file() and not (tmp_path / "other" / TABLE_FILE).exists()
    assert "Kronecker" in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    assert "FC" in (tmp_path / "README.md").read_text(encoding="utf-8")
    model.save_pretrained(tmp_path, selected_adapters=["other"], fuse=True)
    assert (tmp_path / "other" / TABLE_FILE).is_file()
    for name, folder in (("default", tmp_path), ("other", tmp_path / "other")):
        model.set_adapter(name)
        loaded = PeftModel.from_pretrained(build("bert"), folder, adapter_name=name)
        assert list(loaded.base_model.lookup.tables) == [name]
        with torch.no_grad():
            torch.testing.assert_close(output(loaded, BATCH), output(model.eval(), BATCH), atol=3e-2, rtol=1e-3)


def test_adapters_without_a_default_get_one_card_above_them(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(build("bert"), saved(tmp_path / "source"), adapter_name="rte")
    model.load_adapter(tmp_path / "source", adapter_name="boolq")
    model.save_pretrained(tmp_path / "both")
    text = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert text.count("## AoT P-Tuning adapter") == 2
    assert 'adapter, subfolder="rte", adapter_name="rte"' in text and 'subfolder="boolq"' in text
    below = (tmp_path / "both" / "rte" / "README.md").read_text(encoding="utf-8")
    assert below.count("## AoT P-Tuning adapter") == 1 and "subfolder" not in below


def saved(folder: Path) -> Path:
    adapted("bert").save_pretrained(folder)
    return folder


def test_the_card_is_kept_and_updated(tmp_path: Path) -> None:
    adapted("bert", fuse_on_save=True).save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    before = card.read_text(encoding="utf-8")
    assert "rank 4" in before and "lookup table (float16) is included" in before
    card.write_text(f"{before}\nMy own words.\n", encoding="utf-8")
    (tmp_path / "task.json").write_text('{"task": "rte", "scores": {"accuracy": 0.5}}', encoding="utf-8")
    adapted("bert", r=2).save_pretrained(tmp_path)
    after = card.read_text(encoding="utf-8")
    assert "My own words." in after and "rank 2" in after and "rank 4" not in after
    assert after.count("## AoT P-Tuning adapter") == 1 and "No fused table" in after
    assert "| accuracy | 0.5000 |" in after
    assert (tmp_path / "task.json").is_file() and not (tmp_path / TABLE_FILE).exists()


def test_a_broken_task_file_does_not_stop_a_save(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"task": ', encoding="utf-8")
    adapted("bert").save_pretrained(tmp_path)
    assert "Task: SEQ_CLS." in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_weights_of_the_other_format_do_not_stay(tmp_path: Path) -> None:
    # PEFT reads adapter_model.safetensors first, whichever file is newer
    saved(tmp_path)
    model = adapted("bert", seed=9)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / WEIGHTS_NAME).is_file() and not (tmp_path / "adapter_model.safetensors").exists()
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    torch.testing.assert_close(output(loaded, BATCH), output(model, BATCH))
    with pytest.raises(ValueError, match="expected safe_serialization=True for an adapter saved with its table"):
        model.save_pretrained(tmp_path, safe_serialization=False, fuse=True)
    assert (tmp_path / WEIGHTS_NAME).is_file(), "refused before anything changed"


def test_only_the_main_process_saves(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path / "adapter", is_main_process=False)
    assert not list(tmp_path.rglob("adapter_config.json"))


def test_unknown_adapters_and_files_are_refused_as_by_peft(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid `selected_adapters`"):
        adapted("bert").save_pretrained(tmp_path / "adapter", selected_adapters=["nobody"])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="should be a directory, not a file"):
        adapted("bert").save_pretrained(tmp_path / "file")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    model = adapted("bert", r=2)
    for name in ("mkdir", "rename", "replace"):
        with monkeypatch.context() as patch, pytest.raises(PermissionError):
            patch.setattr(os, name, refuse)
            model.save_pretrained(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before, name
        assert PeftModel.from_pretrained(build("bert"), folder).peft_config["default"].r == 4
    model.save_pretrained(folder)
    assert PeftModel.from_pretrained(build("bert"), folder).peft_config["default"].r == 2


def test_files_are_readable_as_others_are(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    ordinary = (tmp_path / "plain").stat().st_mode
    adapted("bert", fuse_on_save=True).save_pretrained(tmp_path / "adapter")
    for path in (tmp_path / "adapter").iterdir():
        if path.name != "adapter_model.safetensors":  # as safetensors writes it
            assert path.stat().st_mode == ordinary, path
