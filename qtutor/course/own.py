"""The notebook for a model of one's own: `own_model.md` holds its text and its programs, and becomes cells here."""

import re
from pathlib import Path

from qtutor import quick  # noqa: F401  before nbformat

import nbformat

_SOURCE = Path(__file__).with_name("own_model.md")
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

BRING = "bring"
"""The id of the cell that its owner changes."""


def notebook() -> nbformat.NotebookNode:
    """Return the notebook, without outputs."""
    cells = []
    parts = re.findall(r"(.*?)(?:^```python\n(.*?)^```$|\Z)", _SOURCE.read_text(encoding="utf-8"), re.M | re.S)
    for text, program in parts:
        if text.strip():
            cells.append(nbformat.v4.new_markdown_cell(text.strip(), id=f"text-{len(cells)}"))
        if program:
            place = BRING if program.startswith("model = ") else f"code-{len(cells)}"
            cells.append(nbformat.v4.new_code_cell(program.strip(), id=place))
    return nbformat.v4.new_notebook(cells=cells, metadata=_METADATA)


def write(path: Path) -> None:
    """Write the notebook to a new file.

    Raises:
        FileExistsError: there is one already, with what somebody did.
        OSError: none can be written there.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(f"{nbformat.writes(notebook())}\n")
