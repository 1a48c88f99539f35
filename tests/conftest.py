"""What every test shares: calm threads, a home for the run, and a home of its own for each test."""

import os
import re
from pathlib import Path

import qtutor  # noqa: F401  before anything loads PyTorch

import pytest
import thoroughness  # noqa: F401  registers the profiles
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("test_browser.py", "test_diagnosis.py", "test_generate.py")
"""Files whose tests share what is slow to make: a browser, a cluster, a copy of the course."""


class Scheduling(LoadScopeScheduling):
    """Runs the cells of a notebook, and the tests of some files, in one process, and the rest where there is time.

    What is recorded of a lesson's explorer serves all tests of that lesson.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.endswith("test_recording.py") and (lesson := re.search(r"\[(\d\d_\w+)", nodeid)):
            return f"{file}::{lesson[1]}"
        return file if file.endswith((".ipynb", *TOGETHER)) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    return Scheduling(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as slow what exports a model or needs a cluster of processes."""
    exports = hasattr(item, "callspec") and item.callspec.params.get("flow") == "pt2e"
    if exports or "cluster" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Keep what lessons train out of the user's folders: each model is trained once, and found by the next run."""
    if not config.getoption("hypothesis_profile", None):
        settings.load_profile("push")
    os.environ["QTUTOR_HOME"] = str(config.cache.mkdir("qtutor-home"))
    if config.getoption("markexpr") == "not system" and config.getoption("hypothesis_profile", None) != "night":
        os.environ["QTUTOR_MEASURE"] = "0.2"  # in the lessons, none of whose sentences may hang on a time
    if hasattr(config, "workerinput"):  # the processes share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // config.workerinput["workercount"]))


@pytest.fixture(scope="session")
def home_of_the_run() -> Path:
    """Where the lessons of this run keep the models that they train."""
    return Path(os.environ["QTUTOR_HOME"])


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test with no progress and no model trained, and measure for as long as it says."""
    monkeypatch.setenv("QTUTOR_HOME", str(tmp_path / "qtutor-home"))
    monkeypatch.delenv("QTUTOR_MEASURE", raising=False)


@pytest.fixture
def images() -> list[torch.Tensor]:
    """Two batches of four made images."""
    torch.manual_seed(0)
    return [torch.randn(4, 3, 12, 12) for _ in range(2)]
