"""The command: its verbs, its exit codes, its one-line errors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import peft_aot.cli.app
from peft_aot.cli.app import VERBS, main


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_help_names_every_verb_without_importing_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_aot.cli.app.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_the_app_itself_imports_nothing_heavy() -> None:
    tree = ast.parse(Path(peft_aot.cli.app.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"__future__", "importlib", "sys", "typing", "typer", "rich"}


def test_every_module_is_a_verb_and_every_verb_a_module() -> None:
    modules = {path.stem for path in Path(peft_aot.cli.app.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "app", "own_files", "quiet"} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_options_whole_in_a_narrow_terminal(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\u2026" not in shown and max(len(line) for line in shown.splitlines()) <= 80
    if verb == "compare":
        assert "--validation-file <path>" in shown and "aot.learning_rate=1e-3,3e-3; repeatable" in shown


def test_the_list_of_verbs_is_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(about in shown for about in VERBS.values())


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_bad_input_ends_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["evaluate", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected a directory, got ")
    assert error.count("\n") == 1
    with pytest.raises(FileNotFoundError, match="expected a directory"):
        main(["--traceback", "evaluate", str(tmp_path / "none")])
    assert run(["fuse", str(tmp_path), "--dtype", "flaot16"]) == 2
    assert capsys.readouterr().err == "error: expected a known dtype, got 'flaot16'; did you mean 'float16'?\n"
