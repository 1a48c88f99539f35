"""What this computer is, in words.

INT8 speed depends on the processor's instructions more than on anything else: a processor that
multiplies 8-bit integers and adds the products up in 32 bits, in one instruction (VNNI, AMX, the
dot products of ARM), is where quantized models run fast. What cannot be found out is None here,
and a sentence says so.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qtutor import threads
from qtutor.words import counted, in_bytes

import psutil
import torch

if TYPE_CHECKING:
    from packaging.requirements import Requirement

T = TypeVar("T")

_FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "amx_int8": "AMX-INT8",
    "neon": "NEON",
    "dot": "NEON dot product",
    "i8mm": "NEON I8MM",
}
_DOT_PRODUCTS = {"AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "NEON dot product", "NEON I8MM"}


@dataclass(frozen=True)
class Machine:
    """The parts of a computer that the course's results depend on; `str` of it is a few sentences.

    Attributes:
        system: operating system and architecture.
        packages: each package that qtutor needs, with its version, or None where it is not
            installed. None altogether where qtutor itself is not installed.
        kernels: the instruction set that PyTorch's own kernels use.
        features: the instructions that matter for INT8.
        cores: logical cores that this process may use.
        threads: threads that PyTorch uses.
        waiting: how they wait for one another, for the end of a sentence.
        memory_total: bytes of memory, or the limit of the container.
        memory_available: bytes of it that are free.
        engines: PyTorch's quantized engines here.
        engine: the one to use.
        compiler: the C++ compiler that torch.compile would call.
        python_headers: whether Python's C headers, which torch.compile needs too, are installed.
    """

    system: str
    python: str
    torch: str
    packages: Mapping[str, str | None] | None
    cpu: str | None
    kernels: str | None
    features: tuple[str, ...] | None
    cores: int | None
    threads: int
    waiting: str
    memory_total: int | None
    memory_available: int | None
    engines: tuple[str, ...]
    engine: str | None
    compiler: str | None
    python_headers: bool

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether one instruction multiplies 8-bit integers and adds up the products in 32 bits."""
        return not _DOT_PRODUCTS.isdisjoint(self.features or ())

    @property
    def saturates(self) -> bool:
        """Whether sums of two products of 8-bit integers overflow 16 bits, as on x86 without such an instruction."""
        return not (on_arm() or self.has_int8_dot_product)

    @property
    def can_compile(self) -> bool:
        """Whether torch.compile finds what it needs to build C++ kernels."""
        return self.compiler is not None and self.python_headers

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps the course from running, a sentence each; empty where all is well."""
        problems, unfit, packages = [], [], self.packages or {}
        for wanted in requirements() if packages else ():
            version = packages.get(wanted.name)
            if version is None:
                unfit.append(f"{wanted.name} (not installed)")
            elif not wanted.specifier.contains(version, prereleases=True):
                unfit.append(f"{wanted.name} {version} (the course needs {wanted.specifier})")
        if unfit:
            listed = ", ".join(unfit)
            problems.append(f"Not as the course needs them: {listed}. Run the first line of the README again.")
        if self.engine is None:
            problems.append(
                "This PyTorch has no quantized engine, so INT8 models cannot run: install an official build, "
                "as the README tells."
            )
        return tuple(problems)

    def __str__(self) -> str:
        return "\n".join((*self.sentences(), *self.problems))

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {line}" for line in str(self).splitlines())

    def setting(self, versions: Mapping[str, str]) -> str:
        """Say where something ran: versions by name, threads, the processor and what it has for INT8, in a sentence."""
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        ran = counted(self.threads, "thread") + (f" that wait {self.waiting}" if self.threads > 1 else "")
        features = f" ({', '.join(self.features)})" if self.features else ""
        return f"{named}, with {ran} on {self.cpu or 'an unknown processor'}{features}."

    def sentences(self) -> Iterable[str]:
        """Say what the computer is, without its problems."""
        yield f"{self.system}, Python {self.python}, PyTorch {self.torch}."
        if self.packages is None:
            yield "Which of the course's packages are here could not be found out: qtutor itself is not installed."
        else:
            installed = (f"{name} {version}" for name, version in self.packages.items() if version and name != "torch")
            yield f"With {', '.join(installed)}."

        cores = "an unknown number of cores" if self.cores is None else counted(self.cores, "core")
        cpu = self.cpu or "unknown, its name could not be found out"
        yield f"The processor: {cpu}. PyTorch uses {counted(self.threads, 'thread')} on {cores}."
        if self.threads > 1:
            advice = "" if self.waiting != threads.SPINNING else f": {threads.ADVICE}"
            yield f"They wait for one another {self.waiting}{advice}."
        if self.kernels:
            kernels = "the default instructions" if self.kernels == "DEFAULT" else self.kernels
            yield f"PyTorch's own kernels use {kernels}."
        if self.features is None:
            yield "Which INT8 instructions the processor has could not be found out."
        elif self.has_int8_dot_product:
            yield f"For INT8 it has {_list(self.features)}: it adds up products of 8-bit integers in one instruction."
        else:
            yield (
                f"For INT8 it has {_list(self.features) or 'no instructions that this course knows'}, "
                "and no instruction that adds up products of 8-bit integers: expect less from INT8 here."
            )

        if self.memory_total is None or self.memory_available is None:
            yield "How much memory there is could not be found out."
        else:
            yield f"Memory: {in_bytes(self.memory_total)}, of which {in_bytes(self.memory_available)} are free."

        if self.engine:
            others = [engine for engine in self.engines if engine != self.engine]
            yield f"Quantized engine: {self.engine}" + (f" ({_list(others)} would work too)." if others else ".")
        if self.can_compile:
            yield f"C++ compiler: {self.compiler}, so torch.compile works."
        else:
            lacking = "Python's C headers were not found" if self.compiler else "C++ compiler: none was found"
            yield f"{lacking}, so what needs torch.compile is left out; the rest of the course works."


def describe() -> Machine:
    """Find out what this computer is. Never raises: what cannot be found out is None.

    Example:
        >>> machine = describe()
        >>> machine.engine in machine.engines
        True
    """
    capabilities = _attempt(torch.cpu.get_capabilities)
    supported = _attempt(lambda: torch.backends.quantized.supported_engines) or ()
    engines = tuple(engine for engine in supported if engine != "none")
    memory_total, memory_available = _attempt(_memory) or (None, None)
    system = {"": "An unknown system", "Darwin": "macOS"}.get(platform.system(), platform.system())
    architecture = platform.machine()
    return Machine(
        system=f"{system} on {architecture or 'an unknown processor'}",
        python=platform.python_version(),
        torch=torch.__version__,
        packages=_attempt(_packages),
        cpu=(capabilities or {}).get("cpu_name") or _attempt(platform.processor) or None,
        kernels=_attempt(torch.backends.cpu.get_cpu_capability),
        features=None if capabilities is None else tuple(_FEATURES[key] for key in _FEATURES if capabilities.get(key)),
        cores=_attempt(threads.cores),
        threads=torch.get_num_threads(),
        waiting=threads.waiting(),
        memory_total=memory_total,
        memory_available=memory_available,
        engines=engines,
        engine=choose_engine(engines, architecture),
        compiler=_attempt(_compiler),
        python_headers=bool(_attempt(lambda: Path(sysconfig.get_path("include"), "Python.h").exists())),
    )


def on_arm(architecture: str | None = None) -> bool:
    """Whether a processor, by default this one, is of ARM: what `platform.machine()` says."""
    return (architecture or platform.machine()).lower().startswith(("arm", "aarch"))


def choose_engine(engines: Iterable[str], architecture: str) -> str | None:
    """Choose the quantized engine to use: the fastest that is there, or None where none is.

    Args:
        engines: what `torch.backends.quantized.supported_engines` lists.
        architecture: what `platform.machine()` says.

    Example:
        >>> choose_engine(["qnnpack", "onednn", "x86", "fbgemm"], "x86_64")
        'x86'
        >>> choose_engine(["qnnpack", "onednn"], "arm64")
        'qnnpack'
    """
    order = ("qnnpack", "onednn") if on_arm(architecture) else ("x86", "onednn", "fbgemm", "qnnpack")
    engines = tuple(engines)
    return next((engine for engine in order if engine in engines), None)


def requirements(lines: Iterable[str] | None = None) -> "list[Requirement]":
    """Return those of some requirements, by default qtutor's, whose markers hold here; an extra's never do.

    Raises:
        PackageNotFoundError: qtutor is not installed, and no `lines` are given.
    """
    from packaging.requirements import Requirement

    lines = importlib.metadata.requires("qtutor") or () if lines is None else lines
    return [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]


def _attempt(find: Callable[[], T]) -> T | None:
    try:
        return find()
    except Exception:
        return None


@cache  # each version takes a file to read, and every conversion asks what the machine is
def _packages() -> Mapping[str, str | None]:
    return {each.name: _attempt(partial(importlib.metadata.version, each.name)) for each in requirements()}


def _memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    limit = _attempt(lambda: int(Path("/sys/fs/cgroup/memory.max").read_text()))  # psutil sees the host's memory
    if limit is None or limit >= memory.total:
        return memory.total, memory.available
    used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    return limit, min(memory.available, max(limit - used, 0))


def _compiler() -> str | None:
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")  # what torch.compile looks for
    name = os.environ.get("CXX", usual)
    return name if shutil.which(name) else None


def _list(names: Iterable[str]) -> str:
    *most, last = [*names] or [""]
    return f"{', '.join(most)} and {last}" if most else last
