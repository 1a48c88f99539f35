"""Check what needs no test to run: `python tests/check.py`. GitHub, `.ci/run` and pre-commit call the same.

Linter and format (ruff), the order of the rooms (import-linter), dependencies that are used and not declared, or
declared and not used (deptry), types (mypy). `pyproject.toml` says what each of them wants.
"""

import subprocess
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent
CHECKS = (
    ("-m", "ruff", "check", "."),
    ("-m", "ruff", "format", "--check", "."),
    ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
    ("-m", "deptry", "qtutor"),
    ("-m", "mypy"),
)


def main() -> int:
    """Run every check, whether or not one before it failed; return how many failed."""
    failed = [check for check in CHECKS if subprocess.run([sys.executable, *check], cwd=COURSE).returncode]
    for check in failed:
        print("failed:", *check, file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
