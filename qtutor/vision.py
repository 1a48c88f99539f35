"""Makes a torchvision that was built for another PyTorch importable. Import this first, then torchvision.

torchvision describes two operators, `nms` and `qnms`, to PyTorch at import, whether or not its
compiled extension has defined them. The Linux wheel on PyPI is built for CUDA: beside a CPU build
of PyTorch its extension cannot load, and the import dies on "operator torchvision::nms does not
exist". Declaring the two is enough. Models and transforms are plain Python on PyTorch and work in
full; a detection operator still needs the extension, and torchvision's own error says so when one
is called.

Where the extension loads, or torchvision is not there, nothing is declared.
"""

from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}


def _extension_loads(folders: list[str]) -> bool:
    """Ask as torchvision itself does, without running its `__init__`."""
    extension = PathFinder.find_spec("_C", folders)
    if extension is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


_torchvision = find_spec("torchvision")
if _torchvision and not _extension_loads(_torchvision.submodule_search_locations or []):
    _missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if _missing:
        _library = torch.library.Library("torchvision", "FRAGMENT")  # what it declares lives as long as it does
        for _schema in _missing:
            _library.define(_schema)
