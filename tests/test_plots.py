"""Pictures are drawn from whatever is stored, also when it is degenerate."""

import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

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


PICTURES = [
    lambda: plots.spectrum(np.array([2.0, 0.5, 0.0, -0.1]), damping=[0.01, 0.1]),
    lambda: plots.spectrum(np.zeros(3)),
    lambda: plots.convergence(np.array([1e-7, 1e-8])),
    lambda: plots.convergence(np.array([1e-7]), niter=np.array([3.0]), tolerance=1e-6),
    lambda: plots.convergence(np.zeros(2), niter=np.ones(2), curve=CURVE),
    lambda: plots.convergence(np.zeros(1), niter=np.zeros(1), curve=np.empty((3, 0))),
    lambda: plots.histogram(RNG.normal(size=1000)),
    lambda: plots.histogram(np.zeros(10)),
    lambda: plots.image_grid([DIGIT], [[DIGIT, GONE]], [[DIGIT]]),
    lambda: plots.agreement({"flat": np.zeros((2, 3))}, np.zeros((2, 3)), title="nothing moved"),
    lambda: plots.intervals(["loss"], np.array([0.1]), np.array([-0.1]), np.array([0.2])),
    lambda: plots.detection({"loss": RNG.normal(size=9)}, np.zeros(9, bool), title="nothing wrong"),
    lambda: plots.feature_map(RNG.normal(size=(8, 8)), title="train-1 → test-2"),
    lambda: plots.feature_map(np.zeros((2, 3)), title="nothing"),
    lambda: plots.feature_bars(["age", "bmi"], np.array([1.0, -2.0]), title="train-1 → test-2"),
]


@pytest.mark.parametrize("drawn", PICTURES)
def test_pictures_can_be_drawn(drawn):
    image = figures.png(drawn())
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


def pixels_of(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figures.png(figure))).convert("L"))


def test_a_picture_is_cut_to_what_is_drawn_and_to_whole_images():
    blank, dot = np.zeros((8, 8)), np.zeros((8, 8))
    dot[3, 4] = 1
    drawn = [pixels_of(plots.thumbnail(image)) for image in (blank, dot)]
    assert drawn[0].shape == drawn[1].shape == (72, 72)  # 0.6 inches and a margin, at 90 dpi
    drawn = pixels_of(plots.histogram(RNG.normal(size=99)))
    inside, margin = drawn[9:-9, 9:-9], round(figures.MARGIN * 90)
    assert margin == 9
    assert (inside < 255).sum() == (drawn < 255).sum() > 1000
    for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
        assert (edge < 255).any()


def test_what_reaches_over_the_edge_of_a_figure_is_shown_whole():
    figure, (axes,) = figures.panels(1, width=2.0, height=2.0)
    within = pixels_of(figure).shape[1]
    axes.set_title("longer than the figure is wide, by far")
    drawn = pixels_of(figure)
    assert drawn.shape[1] > 1.2 * within
    assert (drawn[:, :8] == 255).all()
    assert (drawn[:, -8:] == 255).all()


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


ODD = [*NAMES, *NOT_PRINTED]


def assert_drawn(figure: Figure, *names: str) -> None:
    assert figures.png(figure).startswith(b"\x89PNG")
    shown = texts(figure)
    for name in names:
        assert literal(name, 30)[:29] in shown
        assert literal(name, 60).isprintable()
    width, height = figure.canvas.get_width_height()
    assert max(width, height) < 2000


@pytest.mark.parametrize("name", ODD)
def test_titles_are_drawn_as_they_are(name):
    assert_drawn(plots.feature_map(DIGIT[1], title=name), name)


def test_names_of_features_and_rows_are_drawn_as_they_are():
    long = max(ODD, key=len)
    for names in ([name for name in ODD if name != long], [long, "b"]):
        values = np.arange(1.0, len(names) + 1)
        assert_drawn(plots.feature_bars(names, values, title=names[0]), *names)
    test, *rows = [(name, DIGIT[1]) for name in ODD]
    assert_drawn(plots.image_grid([test], [rows[:6]], [rows[6:]]), *ODD)


def test_two_features_of_one_shown_name_are_two_bars():
    long = "x" * 100
    (axes,) = plots.feature_bars([f"{long}a", f"{long}b"], np.array([1.0, 2.0]), title="t").axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 2.0]
