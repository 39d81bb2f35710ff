"""Pictures are drawn from whatever is stored, also when it is degenerate."""

import base64

import numpy as np
import pytest
from matplotlib.figure import Figure

from influence_dag import plots

RNG = np.random.default_rng(0)
DIGIT = ("test-0 (3)", RNG.random((8, 8)))
GONE = ("train-9 (1)", np.full((8, 8), np.nan))


def texts(figure: Figure) -> str:
    labels = [text.get_text() for axes in figure.axes for text in axes.findobj(match=_is_text)]
    return "\n".join([*labels, *(text.get_text() for text in figure.texts)])


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")


CURVES = np.array([1, 2, 4]), np.array([[0.1, 1e-3, np.nan], [0.3, 1e-2, 1e-8]])


@pytest.mark.parametrize(
    "figure",
    [
        plots.spectrum(np.array([2.0, 0.5, 0.0, -0.1]), damping=[0.01, 0.1]),
        plots.spectrum(np.zeros(3)),
        plots.convergence(np.array([3.0, 4.0]), np.array([1e-7, 1e-8]), CURVES, tolerance=1e-6),
        plots.convergence(np.array([1.0]), np.array([0.0]), (np.array([1]), np.zeros((1, 1)))),
        plots.histogram(RNG.normal(size=1000)),
        plots.histogram(np.zeros(10)),
        plots.image_grid([DIGIT], [[DIGIT, GONE]], [[DIGIT]]),
        plots.feature_map(RNG.normal(size=(8, 8)), title="train-1 → test-2"),
        plots.feature_map(np.zeros((2, 3)), title="nothing"),
        plots.feature_bars(["age", "bmi"], np.array([1.0, -2.0]), title="train-1 → test-2"),
    ],
    ids=lambda figure: figure.axes[0].get_title(),
)
def test_pictures_can_be_drawn(figure):
    image = plots.png(figure)
    assert image.startswith(b"\x89PNG")
    assert len(image) > 2000


def test_a_spectrum_counts_signs_and_leaves_rounding_out():
    values = np.array([3.0, 1.0, 1e-17, -1e-17, -0.5])
    shown = texts(plots.spectrum(values, damping=[0.1]))
    for words in ("positive: 2", "negative (absolute value): 1", "zero to rounding: 2"):
        assert words in shown
    assert "damping 0.1" in shown


def test_an_image_grid_names_rows_and_labels():
    shown = texts(plots.image_grid([DIGIT], [[DIGIT, GONE]], [[GONE]]))
    assert shown.count("train-9 (1)") == 2
    assert shown.count("test-0 (3)") == 2


def test_markdown_holds_the_whole_picture():
    figure = plots.histogram(np.arange(5.0))
    text = plots.markdown(figure, "a histogram")
    prefix = "![a histogram](data:image/png;base64,"
    assert text.startswith(prefix)
    assert base64.b64decode(text[len(prefix) : -1]) == plots.png(figure)
