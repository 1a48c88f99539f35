"""What every test shares: calm threads, a home for the run, and a home of its own for each test."""

import os
from pathlib import Path

import qtutor  # noqa: F401  before anything loads PyTorch

import pytest
import thoroughness  # noqa: F401  registers the profiles
import torch
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Keep what lessons train out of the user's folders: each model is trained once, and found by the next run."""
    if not config.getoption("hypothesis_profile", None):
        settings.load_profile("push")
    os.environ["QTUTOR_HOME"] = str(config.cache.mkdir("qtutor-home"))
    if hasattr(config, "workerinput"):  # the processes share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // config.workerinput["workercount"]))


@pytest.hookimpl(tryfirst=True)  # before markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what shares a kernel, a browser or a cluster in one process, and the rest where there is time."""
    for item in items:
        shares_cluster = "cluster" in getattr(item, "fixturenames", ())
        if item.path.suffix == ".ipynb" or item.get_closest_marker("browser") or shares_cluster:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        exports = hasattr(item, "callspec") and item.callspec.params.get("flow") == "pt2e"
        if shares_cluster or exports:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def home_of_the_run() -> Path:
    """Where the lessons of this run keep the models that they train."""
    return Path(os.environ["QTUTOR_HOME"])


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test with no progress and no model trained."""
    monkeypatch.setenv("QTUTOR_HOME", str(tmp_path / "qtutor-home"))
