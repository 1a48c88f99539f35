"""Import nbformat, plotly and JupyterLab in seconds less: import this first.

All three import jsonschema, which builds a grammar of all internet addresses in every language where the package
rfc3987_syntax is there, as a JupyterLab brings it: one to four seconds in every kernel, server and test, for a check
that none of them asks for. Here nbformat is imported as if that package were not there.
"""

import importlib
import sys
from contextlib import suppress

_GRAMMAR = "rfc3987_syntax"

if _GRAMMAR not in sys.modules and "jsonschema" not in sys.modules:
    sys.modules[_GRAMMAR] = None  # type: ignore[assignment]  # an import of it fails: jsonschema takes it for absent
    try:
        with suppress(ImportError):  # plotly does without
            importlib.import_module("nbformat")
    finally:
        del sys.modules[_GRAMMAR]
