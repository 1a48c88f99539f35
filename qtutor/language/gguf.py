"""Read a GGUF file: a head of named values, a table of tensors, then their bytes.

    magic "GGUF", version, how many tensors, how many values
    each value    its name, its type, itself
    each tensor   its name, its sizes (the shortest stride first), its format, where its bytes begin
    padding to a multiple of the alignment, then the bytes

A file may come from anywhere, so nothing that it says is believed before it is checked against how long the file is:
what lies is refused in a sentence, and no memory is taken for it. Tensors are read one by one, when asked for.

Source: ggml, `docs/gguf.md`.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr
from typing import BinaryIO

from qtutor.lowbit import FORMATS, StoredFormat

import torch
from torch import Tensor

Value = int | float | bool | str | list
"""What a file says under a name."""

LONGEST_LIST = 1 << 20
"""Of strings or numbers in all lists together; vocabularies have some 10^5."""

LARGEST_HEAD = 1 << 25
"""Bytes before the tensors; vocabularies of 10^5 take some 10^7."""

_AT_ONCE = 1 << 20  # weights that are decoded together
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
_PLAIN = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 30: ("BF16", torch.bfloat16)}
_BLOCKS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 8: "Q8_0", 12: "Q4_K", 14: "Q6_K", 39: "MXFP4", 40: "NVFP4"}
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands in a file.

    Attributes:
        shape: as PyTorch orders it, rows first.
        form: the name of its format, such as "F32" or "Q4_1".
        start: the first of its bytes in the file.
        size: how many bytes it takes.
    """

    shape: tuple[int, ...]
    form: str
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds; `read_gguf` makes one.

    Attributes:
        path: the file.
        metadata: what it says of itself.
        tensors: where each stands.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, StoredTensor]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, decoded to float32.

        Raises:
            ValueError: the file has no such tensor, or is shorter than it was.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.path.name} holds no tensor {name!r}")
        stored = self.tensors[name]
        values = torch.empty(math.prod(stored.shape[:-1]), stored.shape[-1])
        width = stored.size // len(values)
        with self.path.open("rb") as file:
            file.seek(stored.start)
            for rows in values.split(max(1, _AT_ONCE // stored.shape[-1])):  # decoding takes several times their memory
                data = bytearray(file.read(len(rows) * width))
                if len(data) != len(rows) * width:
                    raise ValueError(f"{self.path.name} ends within {name!r}: it is shorter than when it was opened")
                rows.copy_(_decoded(torch.frombuffer(data, dtype=torch.uint8).view(-1, width), stored.form))
        return values.view(stored.shape)


def _decoded(data: Tensor, form: str) -> Tensor:
    for name, dtype in _PLAIN.values():
        if name == form:
            return data.view(dtype).float()
    return _stored_format(form).read(data)


def read_gguf(path: Path | str) -> GgufFile:
    """Read what a GGUF file says, and where its tensors are; its weights stay on the disk.

    Raises:
        ValueError: no file, not a GGUF file of version 2 or 3, or one that is cut off, contradicts itself or has a
            format that is not read here; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    with path.open("rb") as file:
        head = _Head(file, path.stat().st_size, path.name)
        count, values = head.opening()
        metadata: dict[str, Value] = {}
        for _ in range(values):
            name = head.text(most=1 << 16)
            if name in metadata:
                raise head.refusal(f"says {name!r} twice")
            metadata[name] = head.value(head.number("I"))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in range(8, 1 << 16, 8):
            raise head.refusal(f"has an alignment of {repr(alignment)}, not a multiple of 8 below {1 << 16}")
        listed = [_listed(head, alignment) for _ in range(count)]
        start = -(-head.place // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, stored in listed:
            if name in tensors:
                raise head.refusal(f"lists the tensor {name!r} twice")
            tensors[name] = StoredTensor(stored.shape, stored.form, start + stored.start, stored.size)
    _check_places(head, tensors)
    return GgufFile(path, metadata, tensors)


class _Head:
    """Reads a file from its start, and never past its end."""

    def __init__(self, file: BinaryIO, size: int, name: str):
        self.file, self.size, self.name, self.place, self.listed = file, size, name, 0, 0

    def refusal(self, why: str) -> ValueError:
        return ValueError(f"{self.name} {why}: it is damaged, or no model that can be read here")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.place:
            raise self.refusal(f"ends at byte {self.size}, and {what} would need {count} bytes from {self.place} on")
        if count > LARGEST_HEAD - self.place:
            raise self.refusal(f"says more of itself than {LARGEST_HEAD} bytes")
        self.place += count
        data = self.file.read(count)
        if len(data) != count:
            raise self.refusal("became shorter while it was read")
        return data

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), "a number"))[0]

    def room(self, count: int, each: int, what: str) -> int:
        """Return a count that the rest of the file has room for."""
        if count * each > self.size - self.place:
            raise self.refusal(f"announces {count} {what}, and has {self.size - self.place} bytes left")
        return count

    def text(self, most: int = 1 << 24) -> str:
        length = self.number("Q")
        if length > most:
            raise self.refusal(f"announces a text of {length} bytes, and {most} is the most here")
        data = self.take(length, "a text")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.refusal("holds a text that is not UTF-8") from None

    def opening(self) -> tuple[int, int]:
        magic = self.take(4, "the first word")
        if magic != b"GGUF":
            raise self.refusal(f"begins with {magic!r}, not with b'GGUF'")
        version = self.number("I")
        if version not in (2, 3):
            raise self.refusal(f"has version {version} of the format, and 2 and 3 are read")
        tensors, values = self.number("Q"), self.number("Q")
        return self.room(tensors, 32, "tensors"), self.room(values, 13, "values")  # the least that each takes

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text()
        if kind == _LIST:
            return self.values()
        return self.numbers(kind, 1)[0]

    def values(self) -> list:
        kind, count = self.number("I"), self.number("Q")
        if kind == _LIST:
            raise self.refusal("holds a list of lists")
        self.listed += count
        if self.listed > LONGEST_LIST:
            raise self.refusal(f"announces a list of {count}, and {LONGEST_LIST} in all lists is the most here")
        if kind == _STRING:
            return [self.text() for _ in range(self.room(count, 8, "texts"))]
        return self.numbers(kind, count)

    def numbers(self, kind: int, count: int) -> list:
        if kind not in _NUMBERS:
            raise self.refusal(f"holds a value of type {kind}, and there is no such type")
        code = f"<{count}{_NUMBERS[kind]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code), f"{count} numbers")))


def _listed(head: _Head, alignment: int) -> tuple[str, StoredTensor]:
    """Read one line of the table of tensors; its start is counted from the first byte of them all."""
    name = head.text(most=1 << 16)
    if len(name) > 64 or not _NAME.fullmatch(name):
        raise head.refusal(f"has a tensor named {name[:70]!r}, and names are letters, digits, '_', '-' and single dots")
    dimensions = head.number("I")
    if not 1 <= dimensions <= 4:
        raise head.refusal(f"gives {name!r} {dimensions} dimensions, and there are 1 to 4")
    sizes = [head.number("Q") for _ in range(dimensions)]
    kind, start = head.number("I"), head.number("Q")
    if kind in _PLAIN:
        form, block, width = _PLAIN[kind][0], 1, _PLAIN[kind][1].itemsize
    elif kind in _BLOCKS:
        form = _BLOCKS[kind]
        block, width = _stored_format(form).stored_block, _stored_format(form).block_bytes
    else:
        raise head.refusal(f"keeps {name!r} in format number {kind}, which is not read here")
    if 0 in sizes or sizes[0] % block:
        raise head.refusal(f"gives {name!r} the sizes {sizes}, and rows of {form} are whole blocks of {block}")
    if start % alignment:
        raise head.refusal(f"begins {name!r} at byte {start}, no multiple of its alignment {alignment}")
    size = math.prod(sizes) // block * width
    if size > head.size:
        raise head.refusal(f"gives {name!r} the sizes {sizes}, {size} bytes, and the file has {head.size}")
    return name, StoredTensor(tuple(sizes[::-1]), form, start, size)


def _check_places(head: _Head, tensors: dict[str, StoredTensor]) -> None:
    """Refuse tensors beyond the end of the file, and two that share bytes."""
    end = 0
    for name, stored in sorted(tensors.items(), key=lambda item: item[1].start):
        if stored.start + stored.size > head.size:
            raise head.refusal(f"has {name!r} end at byte {stored.start + stored.size}, and itself at {head.size}")
        if stored.start < end:
            raise head.refusal(f"begins {name!r} within another tensor")
        end = stored.start + stored.size


def _stored_format(name: str) -> StoredFormat:
    form = FORMATS[name]
    assert isinstance(form, StoredFormat)
    return form
