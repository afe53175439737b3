"""The enum extension and the version check, against a PEFT that is not there."""

import importlib.util
import json
import pickle
import sys
import types
from enum import Enum
from pathlib import Path

import pytest

REGISTRATION = Path(__file__).parents[2] / "src" / "peft_aot" / "_registration.py"


@pytest.fixture
def registration(monkeypatch):
    """_registration.py alone, loaded against a PEFT of four names."""
    fakes = {name: types.ModuleType(name) for name in ("peft", "peft.mapping", "peft.utils")}
    fakes["peft"].__version__ = "0.21.2"
    fakes["peft"].PeftModel = type("PeftModel", (), {})
    fakes["peft.mapping"].PEFT_TYPE_TO_CONFIG_MAPPING = {}
    fakes["peft.utils"].PeftType = Enum("PeftType", {"LORA": "LORA"}, type=str)
    fakes["peft.utils"].register_peft_method = lambda **_: None
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("registration_alone", REGISTRATION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def peft_type(registration, monkeypatch):
    """An enumeration as PEFT declares its own, extended once; a global here, so that pickle finds it."""

    class PeftType(str, Enum):  # noqa: UP042 - PEFT's own bases
        LORA = "LORA"
        IA3 = "IA3"

    registration.extend_peft_type(PeftType, "AOT")
    home = types.ModuleType("a_module_that_pickle_finds")
    home.PeftType = PeftType
    PeftType.__module__, PeftType.__qualname__ = home.__name__, "PeftType"
    monkeypatch.setitem(sys.modules, home.__name__, home)
    return PeftType


def test_new_member_is_like_the_old_ones(peft_type):
    assert peft_type("AOT") is peft_type.AOT is peft_type["AOT"]
    assert isinstance(peft_type.AOT, peft_type)
    assert isinstance(peft_type.AOT, str)
    assert peft_type.AOT == "AOT"
    assert (peft_type.AOT.name, peft_type.AOT.value) == ("AOT", "AOT")


def test_iteration_keeps_the_order(peft_type):
    assert [member.value for member in peft_type] == ["LORA", "IA3", "AOT"]
    assert list(peft_type.__members__) == ["LORA", "IA3", "AOT"]
    assert len(peft_type) == 3


def test_pickle_and_json(peft_type):
    assert pickle.loads(pickle.dumps(peft_type.AOT)) is peft_type.AOT
    assert json.loads(json.dumps({"peft_type": peft_type.AOT})) == {"peft_type": "AOT"}


def test_as_dictionary_key(peft_type):
    assert {peft_type.AOT: 1}["AOT"] == 1


def test_twice_changes_nothing(registration, peft_type):
    before = list(peft_type)
    registration.extend_peft_type(peft_type, "AOT")
    assert list(peft_type) == before


def test_old_members_stay(peft_type):
    assert peft_type("LORA") is peft_type.LORA


@pytest.mark.parametrize("version", ["0.21.2", "0.21.9"])
def test_supported_versions(registration, version):
    registration.check_version(version)


@pytest.mark.parametrize("version", ["0.20.0", "0.21.1", "0.22.0", "1.0"])
def test_unsupported_version_says_which_work(registration, version):
    with pytest.raises(ImportError, match=rf"expected peft >=0\.21\.2,<0\.22, got peft {version}; run"):
        registration.check_version(version)
