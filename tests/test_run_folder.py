"""What may start in an output directory, and where a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_aot.run_folder import RunFolder

OPTIONS = {"task": "rte", "seed": 0}


def checkpoint(run: RunFolder, step: int, complete: bool = True) -> Path:
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir()
    if complete:
        (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_new_run_may_start_and_touches_nothing_by_asking(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    assert run.check(OPTIONS, resume=False, overwrite=False) is None
    assert not run.output.exists()


def test_resume_takes_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(OPTIONS)
    assert run.check(OPTIONS, resume=True, overwrite=False) is None
    checkpoint(run, 9)
    newest = checkpoint(run, 10)
    checkpoint(run, 11, complete=False)
    assert run.check(OPTIONS, resume=True, overwrite=False) == newest


def test_resume_refuses_other_options_and_runs_that_are_not_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected an interrupted run to resume in .*, got none; drop --resume"):
        run.check(OPTIONS, resume=True, overwrite=False)
    run.begin(OPTIONS)
    message = "expected seed=0 as in the interrupted run in .*, got 1; pass the same options with --resume, or"
    with pytest.raises(ValueError, match=message):
        run.check({**OPTIONS, "seed": 1}, resume=True, overwrite=False)
    run.end()
    (tmp_path / "task.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        FileNotFoundError, match="got a finished one; drop --resume and pass --overwrite to train again"
    ):
        run.check(OPTIONS, resume=True, overwrite=False)


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(OPTIONS)
    checkpoint(run, 3)
    with pytest.raises(
        FileExistsError, match="expected no run in .*, got an interrupted one; pass --resume to go on, --o"
    ):
        run.check(OPTIONS, resume=False, overwrite=False)
    assert run.check(OPTIONS, resume=False, overwrite=True) is None
    assert run.last_checkpoint() is not None  # asking discards nothing
    run.begin(OPTIONS)
    assert run.last_checkpoint() is None
    run.end()
    (tmp_path / "task.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileExistsError, match="got a finished one; pass --overwrite to replace it, or another output"):
        run.check(OPTIONS, resume=False, overwrite=False)


def test_files_that_no_run_wrote_are_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    message = "expected an output without README.md, which saving would replace, got them in .*; pass another output"
    with pytest.raises(FileExistsError, match=message):
        RunFolder(tmp_path).check(OPTIONS, resume=False, overwrite=False)
    assert RunFolder(tmp_path).check(OPTIONS, resume=False, overwrite=True) is None
    (tmp_path / "README.md").unlink()
    assert RunFolder(tmp_path).check(OPTIONS, resume=False, overwrite=False) is None


def test_a_file_is_no_output(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("", encoding="utf-8")
    with pytest.raises(FileExistsError, match="expected a directory as output, got the file .*; choose another path"):
        RunFolder(path).check(OPTIONS, resume=False, overwrite=True)


def test_only_what_a_run_leaves_is_counted(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"12345")
    (tmp_path / "holiday.jpg").write_bytes(b"123456789")
    assert RunFolder(tmp_path).stored_bytes() == 5
