import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Keep the tests' progress and caches out of the user's own folders."""
    monkeypatch.setenv("QTUTOR_HOME", str(tmp_path / "qtutor-home"))
