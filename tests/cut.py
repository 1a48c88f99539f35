"""Notebooks cut to what one of their cells needs."""

import ast

import nbformat


def cut(notebook: nbformat.NotebookNode, wanted: int) -> nbformat.NotebookNode:
    """Return a notebook of the first code cell, cell number `wanted`, and the cells between that it builds on.

    A cell builds on those that assign, import or change a name that it reads.
    """
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and i <= wanted]
    read, kept = set(), []
    for i in reversed(code):
        stored, loaded = _names(notebook.cells[i].source)
        if i in (code[0], wanted) or stored & read:
            kept.append(i)
            read |= loaded
    cells = [nbformat.v4.new_code_cell(notebook.cells[i].source) for i in reversed(kept)]
    return nbformat.v4.new_notebook(metadata=notebook.metadata, cells=cells)


def _names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell stores, imports or changes, and those that it reads."""
    stored, loaded = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else stored).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            stored.add(node.name)
        elif isinstance(node, ast.alias):
            stored.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            stored |= {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
    return stored, loaded
