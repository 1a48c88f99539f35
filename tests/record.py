"""Bring notebooks into the form that is committed: `python tests/record.py lessons/*.ipynb`.

Runs each notebook from a fresh kernel and keeps the outputs of the cells tagged `nbval-check-output`,
for nbval to compare; every other output and count goes, and so does metadata that only an editor
needs. Untagged outputs (timings, figures) would differ at each run.
"""

import sys
import time
from pathlib import Path

from qtutor.course import notebooks

import nbformat

TAG = "nbval-check-output"


def is_checked(cell: nbformat.NotebookNode) -> bool:
    """Whether nbval compares the outputs of a cell."""
    return cell.cell_type == "code" and TAG in cell.metadata.get("tags", [])


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop in place what is not committed, and return the notebook."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
        if cell.cell_type == "code" and not is_checked(cell):
            cell.outputs, cell.execution_count = [], None
    return notebook


def record(path: Path) -> None:
    """Run the notebook at `path` and write it back in its committed form."""
    nbformat.write(normalise(notebooks.run(nbformat.read(path, 4))), path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        began = time.monotonic()
        record(Path(name))
        print(f"{name}: recorded, {time.monotonic() - began:.0f} seconds")
