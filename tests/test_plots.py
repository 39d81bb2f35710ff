"""Pictures are drawn from whatever is stored, also when it is degenerate."""

import base64

import numpy as np
import pytest
from matplotlib.figure import Figure

from influence_dag.query import figures, plots
from influence_dag.texts import literal

RNG = np.random.default_rng(0)
DIGIT = ("test-0 (3)", RNG.random((8, 8)))
GONE = ("train-9 (1)", np.full((8, 8), np.nan))


def texts(figure: Figure) -> str:
    labels = [text.get_text() for axes in figure.axes for text in axes.findobj(match=_is_text)]
    return "\n".join([*labels, *(text.get_text() for text in figure.texts)])


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")


CURVE = np.array([[1, 4], [0.1, 0.0], [0.2, 0.1]])


@pytest.mark.parametrize(
    "figure",
    [
        plots.spectrum(np.array([2.0, 0.5, 0.0, -0.1]), damping=[0.01, 0.1]),
        plots.spectrum(np.zeros(3)),
        plots.convergence(np.array([1e-7, 1e-8])),
        plots.convergence(np.array([1e-7]), niter=np.array([3.0]), tolerance=1e-6),
        plots.convergence(np.zeros(2), niter=np.ones(2), curve=CURVE),
        plots.convergence(np.zeros(1), niter=np.zeros(1), curve=np.empty((3, 0))),
        plots.histogram(RNG.normal(size=1000)),
        plots.histogram(np.zeros(10)),
        plots.image_grid([DIGIT], [[DIGIT, GONE]], [[DIGIT]]),
        plots.agreement({"flat": np.zeros((2, 3))}, np.zeros((2, 3)), title="nothing moved"),
        plots.intervals(["loss"], np.array([0.1]), np.array([-0.1]), np.array([0.2])),
        plots.detection({"loss": RNG.normal(size=9)}, np.zeros(9, bool), title="nothing wrong"),
        plots.feature_map(RNG.normal(size=(8, 8)), title="train-1 → test-2"),
        plots.feature_map(np.zeros((2, 3)), title="nothing"),
        plots.feature_bars(["age", "bmi"], np.array([1.0, -2.0]), title="train-1 → test-2"),
    ],
    ids=lambda figure: figure.axes[0].get_title(),
)
def test_pictures_can_be_drawn(figure):
    image = figures.png(figure)
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


def test_agreement_shows_the_diagonal_and_how_near_each_prediction_is():
    actual = RNG.normal(size=(3, 4))
    figure = plots.agreement({"half": actual / 2, "reversed": -actual}, actual, title="refits")
    (axes,) = figure.axes
    diagonal = axes.lines[0].get_xydata()
    assert np.array_equal(diagonal[:, 0], diagonal[:, 1])
    assert np.abs(diagonal).max() == np.abs(actual).max()
    shown = texts(figure)
    assert "half: Pearson 1.000, slope 2.00" in shown
    assert "reversed: Pearson -1.000, slope -1.00" in shown
    assert "predicted change" in shown
    assert "after a refit" in shown


def test_detection_counts_what_each_ranking_finds_first():
    wrong = np.array([True, False, False, True])
    scores = {"good": np.array([4.0, 1.0, 2.0, 3.0]), "bad": np.array([1.0, 4.0, 3.0, 2.0])}
    (axes,) = plots.detection(scores, wrong, title="labels").axes
    good, bad, chance = (line.get_ydata() for line in axes.lines)
    assert np.array_equal(good, [0, 0.5, 1, 1, 1])
    assert np.array_equal(bad, [0, 0, 0, 0.5, 1])
    assert np.array_equal(chance, [0, 1])


def test_markdown_holds_the_whole_picture():
    figure = plots.histogram(np.arange(5.0))
    text = figures.markdown(figure, "a histogram")
    prefix = "![a histogram](data:image/png;base64,"
    assert text.startswith(prefix)
    assert base64.b64decode(text[len(prefix) : -1]) == figures.png(figure)


# Names as people have them

NAMES = (
    "$x$",
    "$_{1$",
    "_private",
    "{}",
    "a\\frac",
    "<b>bold</b>",
    "**a**",
    "%d",
    "特徴",
    "é" * 500,
)
NOT_PRINTED = ("line\nbreak", "bell\x07", "\x1b[2J", "lone \udc80")


@pytest.mark.parametrize("name", [*NAMES, *NOT_PRINTED])
def test_names_are_drawn_as_they_are(name):
    digit = (name, DIGIT[1])
    for figure in (
        plots.feature_bars([name, "b"], np.array([1.0, -1.0]), title=name),
        plots.feature_map(DIGIT[1], title=name),
        plots.image_grid([digit], [[digit]], [[digit]]),
    ):
        assert figures.png(figure).startswith(b"\x89PNG")
        shown = texts(figure)
        assert literal(name, 30)[:29] in shown
        assert literal(name, 60).isprintable()
        width, height = figure.canvas.get_width_height()
        assert max(width, height) < 2000


def test_two_features_of_one_shown_name_are_two_bars():
    long = "x" * 100
    (axes,) = plots.feature_bars([f"{long}a", f"{long}b"], np.array([1.0, 2.0]), title="t").axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 2.0]
