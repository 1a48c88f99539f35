"""The rooms of the package: the list that people read is the contract that `tests/check.py` holds imports to."""

import re
from pathlib import Path

import qtutor

from importlinter import api
from lab import COURSE


def test_the_list_of_rooms_is_the_contract_of_imports(monkeypatch):
    monkeypatch.chdir(COURSE)
    (contract,) = api.read_configuration()["contracts_options"]
    rooms = [layer.split(".")[1] for layer in reversed(contract["layers"])]
    assert re.findall(r"^    (\w+) {2,}\S", qtutor.__doc__, re.MULTILINE) == [*dict.fromkeys(rooms)]


def test_every_room_is_in_the_list():
    folder = Path(qtutor.__file__).parent
    modules = {path.stem for path in folder.glob("[!_]*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    assert {*re.findall(r"^    (\w+) {2,}\S", qtutor.__doc__, re.MULTILINE)} == modules
