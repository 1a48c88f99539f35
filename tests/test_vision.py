"""Each test runs in a process of its own: what an import declares to PyTorch cannot be taken back."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# The other kind of installation, whichever this one is: an extension that cannot load, and one that can.
BROKEN = """
import torch

def load_library(path):
    raise OSError(f"Could not load this library: {path}")

torch.ops.load_library = load_library
"""
WHOLE = """
import torch
loaded = []
torch.ops.load_library = loaded.append
"""
DECLARED = "hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms')"


def run(script: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=1200
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout.strip()


WORKS = """
import qtutor.vision
import torch, torchvision
from torchvision.transforms import functional as v1, v2

image = torch.arange(12.0).reshape(3, 2, 2)
print(torch.equal(v1.hflip(image), image.flip(-1)), torch.equal(v2.functional.hflip(image), image.flip(-1)))
with torch.inference_mode():
    print(*torchvision.models.resnet18(num_classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape)
"""


def test_models_and_transforms_work():
    assert run(WORKS).split("\n") == ["True True", "2 7"]


def test_without_the_extension_all_works_but_an_operator_that_says_so_and_importing_again_changes_nothing():
    *works, message, first, second = run(f"""{BROKEN}{WORKS}
import gc, importlib

try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    print(str(error).replace("\\n", " "))
for _ in range(2):
    importlib.reload(qtutor.vision)
    gc.collect()
    print(({DECLARED}))
""").split("\n")
    assert works == ["True True", "2 7"]
    assert "Couldn't load custom C++ ops" in message
    assert "reinstall torchvision so that it matches your PyTorch install" in message
    assert [first, second] == ["(True, True)", "(True, True)"]


def test_nothing_is_declared_where_the_extension_loads():
    assert (
        run(f"""{WHOLE}
import qtutor.vision
print(len(loaded), ({DECLARED}))
""")
        == "1 (False, False)"
    )


def test_nothing_is_declared_without_torchvision_and_its_own_error_comes_later():
    assert run(f"""
import sys, torch
sys.modules["torchvision"] = None
import qtutor.vision
print(({DECLARED}))
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error.name)
""").split("\n") == ["(False, False)", "torchvision"]
