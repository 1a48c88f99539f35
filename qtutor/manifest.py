"""What the course knows of each lesson: the one place that says it.

README's table, the head of each lesson, the pages for instructors, `qtutor prepare`, `qtutor doctor`, Binder and the
browser tests take it from here; `python tests/generate.py` writes what stands in files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import qtutor

TEACHING = Path(__file__).parent / "course" / "teaching"
"""The folder of the pages for instructors."""

COURSE = TEACHING.parents[2]
"""The folder that holds the package: in a clone the root of the repository."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One lesson; after a change, `python tests/generate.py` writes what files say of it.

    Attributes:
        name: its number and the name of its exercises, and the name of its notebook and its notes.
        title: as its first line says it.
        summary: what it is about, for a table.
        needs: the numbers of the lessons that it builds on; what these need is not named again.
        minutes: of its core, exercises included, as `tests/reading.py` estimates; of each half where it has two.
        exercises: how many of these minutes are for exercises and missions.
        discussion: minutes of the discussion in a room.
        seconds: that its cells compute.
        first_seconds: how many more the first time, for training.
        models: of `samples.RECIPES`, that it asks for.
        explorer: the class that one of its cells opens; "" where it has none.
        sliders: of its explorer, by the names that a screen reader says.
    """

    name: str
    title: str
    summary: str
    needs: tuple[str, ...] = ()
    minutes: tuple[int, ...] = (45,)
    exercises: int
    discussion: int = 10
    seconds: int
    first_seconds: int = 0
    models: tuple[str, ...] = ()
    explorer: str = ""
    sliders: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def topic(self) -> str:
        """The name of the module of its exercises."""
        return self.name[3:]

    @property
    def notebook(self) -> str:
        """The path of its notebook in the course."""
        return f"lessons/{self.name}.ipynb"

    @property
    def parts(self) -> dict[str, int]:
        """The minutes of each part that an instructor plans, in order."""
        halves = ("core",) if len(self.minutes) == 1 else ("first half", "second half")
        return {**dict(zip(halves, self.minutes, strict=True)), "discussion": self.discussion}


def course() -> Path:
    """Return the folder that holds the lessons: beside the package, the current one, or, as in a wheel, the package.

    Raises:
        FileNotFoundError: none does; its text says where they were looked for.
    """
    package, here, first = Path(qtutor.__file__).resolve().parent, Path.cwd(), LESSONS[0].notebook
    for folder in (package.parent, here, package):
        if (folder / first).is_file():
            return folder
    raise FileNotFoundError(
        f"There is no {first} beside the package ({package.parent}) or in the current directory ({here})"
    )


def models() -> Iterator[str]:
    """Yield what any lesson asks for, each once."""
    yield from dict.fromkeys(model for lesson in LESSONS for model in lesson.models)


LESSONS = (
    Lesson(
        name="00_start_here",
        title="Start here: the whole game, once through",
        summary="train a small network, quantize it in six lines, see what changed",
        minutes=(20,),
        exercises=5,
        discussion=5,
        seconds=30,
    ),
    Lesson(
        name="01_affine_mapping",
        title="The affine mapping",
        summary="scale and zero point by hand and in code; rounding against clipping",
        needs=("00",),
        exercises=23,
        seconds=15,
        models=("digits_cnn",),
        explorer="AffineExplorer",
        sliders=("Bits", "Clip range, minimum", "Clip range, maximum", "Follow x"),
    ),
    Lesson(
        name="02_granularity",
        title="Granularity",
        summary="one scale for a tensor, a channel or a group; equalization",
        needs=("01",),
        minutes=(40,),
        exercises=19,
        seconds=20,
        first_seconds=20,
        models=("digits_cnn", "digits_depthwise"),
        explorer="GranularityExplorer",
        sliders=("Bits", "Turn up ×"),
    ),
    Lesson(
        name="03_observers",
        title="Observers and calibration",
        summary="which range to represent, and how many images it takes to know",
        needs=("01",),
        exercises=23,
        seconds=25,
        models=("digits_cnn",),
        explorer="ObserverExplorer",
        sliders=("Hot value", "Hot batch", "Batches", "Bits"),
    ),
    Lesson(
        name="04_dynamic_quantization",
        title="Dynamic quantization",
        summary="recurrent and linear layers in one call, when it pays, torchao",
        needs=("02", "03"),
        exercises=23,
        seconds=35,
        first_seconds=5,
        models=("digits_lstm", "digits_gru", "digits_mlp"),
        explorer="DynamicRangeExplorer",
        sliders=("Neighbour", "Shift", "Bits", "Your row"),
    ),
    Lesson(
        name="05_static_quantization",
        title="Static quantization",
        summary="a layer in integers by hand, then networks: eager, FX and PT2E",
        needs=("02", "03"),
        minutes=(35, 25),
        exercises=23,
        seconds=60,
        first_seconds=60,
        models=("flowers_resnet", "flowers_cnn"),
        explorer="IntegerExplorer",
        sliders=("Sample", "Channel", "Row", "Column"),
    ),
    Lesson(
        name="06_quantization_aware_training",
        title="Quantization-aware training",
        summary="train through rounding, learn the scales, convert",
        needs=("05",),
        exercises=23,
        seconds=55,
        models=("digits_depthwise",),
        explorer="QATExplorer",
        sliders=("Step", "Target", "Rate", "Bits"),
    ),
    Lesson(
        name="07_fusion",
        title="Fusion",
        summary="fold and fuse, prove it equal, count roundings and bytes",
        needs=("05",),
        exercises=23,
        seconds=35,
        models=("digits_cnn", "digits_depthwise"),
        explorer="FusionExplorer",
        sliders=("Operator",),
    ),
    Lesson(
        name="08_benchmarking",
        title="Benchmarking that can be trusted",
        summary="what makes a timing lie, ratios with intervals, every CPU runtime",
        needs=("05",),
        minutes=(45, 20),
        exercises=33,
        seconds=85,
        first_seconds=30,
        models=("digits_cnn", "flowers_resnet"),
        explorer="BenchmarkExplorer",
        sliders=("Runs each", "Batch size"),
    ),
    Lesson(
        name="09_published_claims",
        title="Published claims",
        summary="five articles measured, a verdict for each claim",
        needs=("04", "06", "07", "08"),
        minutes=(40,),
        exercises=15,
        seconds=90,
        models=("digits_cnn", "digits_depthwise", "digits_lstm", "digits_mlp", "flowers_resnet"),
    ),
    Lesson(
        name="10_your_own_model",
        title="Your own model",
        summary="find the layer that hurts, repair it, ship the result",
        needs=("04", "06", "07"),
        exercises=23,
        seconds=35,
        first_seconds=5,
        models=("digits_depthwise",),
        explorer="LayerExplorer",
        sliders=("Look at",),
    ),
    Lesson(
        name="11_four_bits",
        title="Four bits and fewer",
        summary="the weights of a language model: bits per weight, GPTQ, floats of four bits",
        needs=("04", "08"),
        exercises=19,
        seconds=60,
        explorer="FourBitExplorer",
        sliders=("Group", "Columns"),
    ),
    Lesson(
        name="12_a_real_language_model",
        title="A real language model",
        summary="outliers found and tamed, a KV cache rounded, claims judged; SmolLM2 where it is installed",
        needs=("11",),
        exercises=18,
        seconds=90,
        explorer="OutlierExplorer",
        sliders=("Bits", "Position", "Channel"),
    ),
)
"""In reading order."""
