"""A live figure: plotly's, without the five megabytes and the seconds that each of plotly's own takes in a page."""

from pathlib import Path

from qtutor import quick  # noqa: F401  before plotly

import ipywidgets
import plotly.graph_objects as go
import traitlets


class Library(ipywidgets.Widget):
    """The text of plotly's program for pages, which all figures of a kernel share."""

    source = traitlets.Unicode(str(go.FigureWidget._esm)).tag(sync=True)


class Figure(go.FigureWidget):
    """A `FigureWidget` whose page loads plotly with the first figure, and not again with each."""

    _esm = Path(__file__).with_name("figure.js")
    library = traitlets.Instance(Library).tag(sync=True, **ipywidgets.widget_serialization)
    _shared: Library | None = None

    @traitlets.default("library")
    def _share(self) -> Library:
        if Figure._shared is None or Figure._shared.comm is None:  # a kernel may have closed all its widgets
            Figure._shared = Library()
        return Figure._shared
