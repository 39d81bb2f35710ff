"""Figures without pyplot's global state: for threads, without a screen, as PNG and as Markdown."""

import base64
import io
import re
import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterSciNotation
from numpy.typing import NDArray

MARGIN = 0.1  # inches around a picture


class Picture(Figure):
    """A figure that notebooks show."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, *, dpi: float = 90) -> bytes:
    """The figure as a PNG file, with a margin around what is drawn."""
    with warnings.catch_warnings():  # what the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        pixels = _cut_out(figure, dpi)
        return _saved_tight(figure, dpi) if pixels is None else _encoded(pixels, dpi)


def _cut_out(figure: Figure, dpi: float) -> NDArray | None:
    """What is drawn, and a margin; None where something reaches over the edge of the figure.

    `savefig(bbox_inches="tight")` draws everything twice, the first time to find where it is. Here
    the pixels tell: to ask the axes takes as long as to draw them.
    """
    canvas, before = FigureCanvasAgg(figure), (figure.dpi, figure.get_facecolor())
    figure.set(dpi=dpi, facecolor="white")
    try:
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())
        images = _images(figure, pixels.shape[:2])
    finally:
        figure.set(dpi=before[0], facecolor=before[1])
    ink = (pixels[..., :3] < 255).any(axis=2)
    outside = ink & ~images
    if any(edge.any() for edge in (outside[0], outside[-1], outside[:, 0], outside[:, -1])):
        return None
    rows, columns = (np.flatnonzero((ink | images).any(axis=axis)) for axis in (1, 0))
    cut = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels
    margin = round(MARGIN * dpi)
    return np.pad(cut, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def _images(figure: Figure, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels that images cover: what is white in them is theirs, and they may fill a figure."""
    covered = np.zeros(shape, bool)
    for image in (image for axes in figure.axes for image in axes.images):
        extents = np.asarray(image.get_window_extent().extents).round().astype(int)
        left, bottom, right, top = np.maximum(extents, 0)
        covered[max(0, shape[0] - top) : shape[0] - bottom, left:right] = True
    return covered


def _encoded(pixels: NDArray, dpi: float) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", dpi=dpi)
    return buffer.getvalue()


def _saved_tight(figure: Figure, dpi: float) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def as_it_is(*texts: Text) -> None:
    """No mathematics in what people have named."""
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)


def markdown(figure: Figure, alt: str) -> str:
    """The figure inside a markdown image, readable without any other file."""
    return f"![{alt}]({data_uri(figure)})"


def data_uri(figure: Figure, *, dpi: float = 90) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(figure, dpi=dpi)).decode()}"


def panels(count: int, *, width: float, height: float) -> tuple[Picture, list[Axes]]:
    """Axes side by side, so many inches each, with room for numbers and their labels.

    A layout that measures these instead draws them four times over, to find about the same room.
    """
    figure = Picture(figsize=(width * count, height))
    across = {"left": 0.85 / width / count, "right": 1 - 0.2 / width / count}
    upright = {"bottom": 0.5 / height, "top": 1 - 0.3 / height}
    grid = figure.subplots(
        1, count, squeeze=False, gridspec_kw=across | upright | {"wspace": 0.8 / (width - 0.8)}
    )
    return figure, list(grid[0])


def titled(axes: Axes, title: str, *, x: str, y: str) -> None:
    """What axes are of, and a title above; one without a place looks for it among all ticks."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, y=1.0)


def scaled_log(axes: Axes) -> None:
    """Powers of ten as text: to read them as mathematics takes as long as all the rest."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_Powers())
    axes.yaxis.set_minor_formatter(_Powers(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


class _Powers(LogFormatterSciNotation):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return re.sub(
            r"\$|\\mathdefault|[{}]", "", re.sub(r"\^\{(.*?)\}", _raised, super().__call__(x, pos))
        ).replace(r"\times", "×")


def _raised(power: re.Match[str]) -> str:
    return power[1].translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
