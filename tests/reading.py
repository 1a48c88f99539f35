"""How long a lesson takes, estimated from its text: nobody was timed."""

import re

import nbformat

WORDS = 200
"""Of text, that a reader takes in a minute."""
CELL, EXERCISE, MISSION = 0.5, 5.0, 4.0
"""Minutes for a cell with what it prints, for an exercise, and for a mission with an explorer."""
DEEPER = "# Go deeper"
"""Opens the part that no core needs."""
STOP = "**Stop here.**"
"""Ends the first of two cores."""


def prose(source: str) -> str:
    """What is read of a cell of text: no program, no address, and a formula is a word."""
    for left_out, instead in (
        (r"```.*?```", " "),
        (r"\$\$.*?\$\$|\$[^$\n]+\$", " formula "),
        (r"\]\([^)]*\)", "]"),
        (r"<[^>]+>|^\|[ |-]+\|$", " "),
    ):
        source = re.sub(left_out, instead, source, flags=re.DOTALL | re.MULTILINE)
    return source


def cores(notebook: nbformat.NotebookNode) -> list[list[nbformat.NotebookNode]]:
    """The cells of each core of a lesson, without what stands under *Go deeper*."""
    parts: list[list[nbformat.NotebookNode]] = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(f"^{DEEPER}", cell.source, re.MULTILINE)):
            parts[-1].append(nbformat.v4.new_markdown_cell(cell.source[: found.start()]))
            break
        parts[-1].append(cell)
        if cell.cell_type == "markdown" and STOP in cell.source:
            parts.append([])
    return parts


def minutes(cells: list[nbformat.NotebookNode]) -> float:
    """How long a core takes, its exercises and missions included."""
    taken = 0.0
    for cell in cells:
        if cell.cell_type == "markdown":
            taken += len(prose(cell.source).split()) / WORDS
        elif ".check(explorer" in cell.source:
            taken += MISSION
        else:
            taken += EXERCISE if ".check(" in cell.source else CELL
    return taken
