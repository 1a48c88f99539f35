"""Run a notebook from beginning to end: `python -m qtutor.course.notebooks LESSON` does, and says what failed."""

import sys
import tempfile
from pathlib import Path

from qtutor import quick  # noqa: F401  before nbformat

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"


def is_progress(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar: the widget that does not say a sentence, as an explorer does."""
    data = output.get("data", {})
    return WIDGET in data and not data.get("text/plain", "").endswith(".")


def run(notebook: nbformat.NotebookNode, cwd: Path | str | None = None, **options: object) -> nbformat.NotebookNode:
    """Run a notebook in place in a kernel of its own, and return it with its outputs.

    Args:
        notebook: of nbformat.
        cwd: where it runs; by default in a new folder, which goes afterwards.
        options: of `nbclient.NotebookClient`.

    Raises:
        CellExecutionError, CellTimeoutError, DeadKernelError: as nbclient does.
    """
    from nbclient import NotebookClient

    options = {"timeout": 3600, "kernel_name": "python3", "extra_arguments": ["--log-level=40"], **options}
    with tempfile.TemporaryDirectory() as elsewhere:
        NotebookClient(notebook, **options).execute(cwd=str(cwd or elsewhere))
    return notebook


def main(path: str) -> int:
    """Run all cells of a notebook here, say on the standard error what failed in which, and return 1 if one did."""
    failed = 0
    for cell in run(nbformat.read(path, 4), Path.cwd(), allow_errors=True).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                print("ERROR in", cell.source, *output.traceback, sep="\n", file=sys.stderr)
            elif "Traceback" not in str(output.get("text", "")):
                continue
            else:
                print(output.text, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
