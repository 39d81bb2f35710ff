"""Folders of pictures, and tables that name them."""

import os
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from influence_dag.datasets.content import source_fingerprint
from influence_dag.datasets.splits import load_splits
from influence_dag.errors import DataError
from influence_dag.study.data import DataSettings

RED, BLUE = (255, 0, 0), (0, 0, 51)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name, colour in {
            "warm/a.png": RED,
            "cold/b.png": BLUE,
            "cold/deep/c.png": BLUE,
        }.items():
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 2), colour).save(path)
    return tmp_path


def read(folder, images=None, **options):
    images = {} if images is None else images
    data = DataSettings.model_validate(
        {"train": "train", "test": "test", "images": images} | options
    )
    return load_splits(data, folder)


def test_a_folder_a_class(folder):
    train, test = read(folder)
    assert train.ids.tolist() == ["cold/b.png", "cold/deep/c.png", "warm/a.png"]
    assert train.labels.tolist() == ["cold", "cold", "warm"]
    assert train.x["x"].shape == (3, 3, 2, 4)
    assert train.dims == ("channel", "row", "column")
    np.testing.assert_allclose(train.x["x"][2, :, 0, 0], [1, 0, 0])
    np.testing.assert_allclose(test.x["x"][0, :, 1, 3], [0, 0, 0.2])


@pytest.mark.parametrize(
    ("classes", "y", "names"), [(None, [3, 3, 7], None), (["7", "3"], [1, 1, 0], ("7", "3"))]
)
def test_folders_that_are_numbers_are_these_numbers(folder, classes, y, names):
    """As in a table: digits are often kept so. Text that is a number was refused as no number."""
    for split in ("train", "test"):
        (folder / split / "cold").rename(folder / split / "3")
        (folder / split / "warm").rename(folder / split / "7")
    train, _ = read(folder, classes=classes)
    assert (train.y.tolist(), train.classes) == (y, names)


def test_two_folders_that_are_one_number_are_refused(folder):
    """They would be one class without a word."""
    (folder / "train/cold").rename(folder / "train/1")
    (folder / "train/warm").rename(folder / "train/01")
    with pytest.raises(DataError, match=r"train: the folders 01, 1 are one number"):
        read(folder)


def test_sizes_and_channels_are_settings(folder):
    train, _ = read(folder, {"size": [3, 5], "channels": 1})
    assert train.x["x"].shape == (3, 1, 3, 5)
    np.testing.assert_allclose(train.x["x"][2], round(0.299 * 255) / 255, atol=1e-6)


def test_a_table_names_pictures(folder):
    for split in ("train", "test"):
        frame = pd.DataFrame(
            {
                "id": [1, 2],
                "path": ["warm/a.png", "cold/b.png"],
                "kind": ["w", "c"],
                "camera": ["Nikon", "Leica"],
                "iso": [100, 200],
            }
        )
        frame.to_csv(folder / f"{split}.csv", index=False)
    options = {"train": "train.csv", "test": "test.csv", "id": "id", "target": "kind"}
    train, _ = read(folder, {"root": "train"}, **options)
    assert train.labels.tolist() == ["w", "c"]
    assert train.kept["path"].tolist() == ["warm/a.png", "cold/b.png"]
    assert train.kept["camera"].tolist() == ["Nikon", "Leica"]
    np.testing.assert_allclose(train.x["x"][0, :, 0, 0], [1, 0, 0])
    with pytest.raises(DataError, match=r"line 2 \(id '1'\), column 'path': no file 'warm/a.png'"):
        read(folder, **options)


def test_columns_beside_pictures_are_refused():
    with pytest.raises(ValidationError, match="with images the pictures are the only input"):
        read(None, features={"columns": ["iso"]})


@pytest.mark.parametrize(
    ("setting", "given"),
    [
        ("id", {"id": "name"}),
        ("target", {"target": "label"}),
        ("keep", {"keep": ["iso"]}),
        ("images.path", {"images": {"path": "file"}}),
        ("images.root", {"images": {"root": "train"}}),
        ("csv", {"csv": {"separator": ";"}}),
    ],
)
def test_a_setting_that_a_folder_does_not_read_is_refused(folder, setting, given):
    """Ids stayed paths and labels the folders' names, whatever was asked for."""
    with pytest.raises(DataError, match=rf"data\.{setting} would be ignored: .* pictures"):
        read(folder, **given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("t.parquet", {"csv": {"separator": ";"}}),
        ("rows_of_a_table:rows", {"images": {}}),
        ("rows_of_a_table:rows", {"csv": {"separator": ";"}}),
    ],
)
def test_a_setting_of_another_kind_of_source_is_refused(tmp_path, name, given):
    pd.DataFrame({"b": [1.0], "y": [0]}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "rows_of_a_table.py").write_text(
        "import pandas as pd\n\n\ndef rows():\n    return pd.DataFrame({'b': [1.0], 'y': [0]})\n"
    )
    data = {"train": name, "test": name}
    load_splits(DataSettings.model_validate(data), tmp_path)
    with pytest.raises(DataError, match=rf"data\.{next(iter(given))} would be ignored"):
        load_splits(DataSettings.model_validate(data | given), tmp_path)


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png"])
def test_several_pictures_in_a_file_are_refused(folder, ending):
    """The first was read, and the others were lost without a word."""
    first, *others = [Image.new("RGB", (4, 2), colour) for colour in (RED, BLUE, RED)]
    path = folder / f"train/warm/several.{ending}"
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(DataError, match=rf"several\.{ending} .* holds 3 pictures"):
        read(folder)


def test_a_page_without_its_width_is_told(folder):
    """Pillow ends in a `TypeError` there."""
    page, path = Image.new("RGB", (4, 2), RED), folder / "train/warm/a.tif"
    page.save(path, save_all=True, append_images=[page])
    content = path.read_bytes()
    width = content.rindex(b"\x00\x01\x04\x00\x01\x00\x00\x00")
    path.write_bytes(content[:width] + b"\x77\x77" + content[width + 2 :])
    with pytest.raises(DataError, match=r"a\.tif is no readable picture: Missing dimensions"):
        read(folder)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_kept_or_refused(folder, mode, channels):
    """What lay below it, mostly black or white, was the picture."""
    picture = Image.new("RGBA", (4, 2), (*RED, 255))
    path = folder / "train/warm/glass.png"
    picture.convert(mode).save(path)
    read(folder, {"channels": channels})  # opaque
    picture.putpixel((0, 0), (*RED, 0))
    picture.convert(mode).save(path)
    with pytest.raises(DataError, match=r"glass\.png .* transparent, .*images\.channels: 4"):
        read(folder, {"channels": channels})
    alpha = read(folder, {"channels": 4})[0].x["x"][-1, 3]
    assert (alpha[0, 0], alpha[0, 1]) == (0, 1)


def test_an_edited_picture_is_another_content(folder):
    data = DataSettings.model_validate({"train": "train", "test": "test", "images": {}})
    before = source_fingerprint(data, folder)
    Image.new("RGB", (4, 2), RED).save(folder / "train/cold/b.png")
    assert source_fingerprint(data, folder) != before


def test_a_picture_whose_name_is_no_text_is_told(folder):
    """The hash of the folder's content came first, and ended in a `UnicodeEncodeError`."""
    cold = folder / "train/cold"
    (cold / "b.png").rename(cold / os.fsdecode(b"\xff.png"))
    data = DataSettings.model_validate({"train": "train", "test": "test", "images": {}})
    assert source_fingerprint(data, folder)
    with pytest.raises(DataError, match=r"the id at picture \d of 3 is .cold.*udcff\.png., which"):
        read(folder)


def test_a_folder_that_is_linked_is_a_class(folder):
    """Its rows were not there, without a word, and edits of them were no edit."""
    for split in ("train", "test"):
        (folder / split / "cold").rename(folder / f"elsewhere_{split}")
        (folder / split / "cold").symlink_to(folder / f"elsewhere_{split}")
        (folder / split / "warm/again").symlink_to(folder / split)  # without an end
    assert read(folder)[0].labels.tolist() == ["cold", "cold", "warm"]
    data = DataSettings.model_validate({"train": "train", "test": "test", "images": {}})
    before = source_fingerprint(data, folder)
    Image.new("RGB", (4, 2), RED).save(folder / "elsewhere_train/b.png")
    assert source_fingerprint(data, folder) != before


@pytest.mark.parametrize("root", [None, "train"])
def test_an_edited_picture_that_a_table_names_is_another_content(folder, root):
    """Beside the table it was no part of the content: a refresh found nothing to do."""
    start = "train/" if root is None else ""
    rows = {"id": [1, 2], "path": [f"{start}warm/a.png", f"{start}cold/b.png"], "kind": [0, 1]}
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    options = {"train": "t.csv", "test": "t.csv", "id": "id", "target": "kind"}
    data = DataSettings.model_validate({"images": {"root": root}} | options)
    before = source_fingerprint(data, folder)
    Image.new("RGB", (4, 2), RED).save(folder / "train/cold/deep/c.png")  # which nobody names
    assert source_fingerprint(data, folder) == before
    Image.new("RGB", (4, 2), RED).save(folder / "train/cold/b.png")
    assert source_fingerprint(data, folder) != before


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_pictures_whose_numbers_would_be_cut_off_are_refused(folder, dtype):
    """Of 16 bits all above 255 were white, of decimals from 0 to 1 all were black."""
    picture = Image.fromarray(np.full((2, 4), 40_000, dtype))
    picture.save(folder / "train/warm/deep.tif")
    with pytest.raises(DataError, match=r"warm/deep\.tif is no readable picture: .* not of 8 bits"):
        read(folder)


def png_of_16_bits(pixels):
    """The bytes of a .png `(rows, columns, 3)`, which Pillow reads and does not write."""

    def chunk(kind, content):
        ends = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + ends

    rows, columns, _ = pixels.shape
    head = struct.pack(">IIBBBBB", columns, rows, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("ending", ["png", "ppm"])
def test_colours_of_16_bits_are_refused(folder, ending):
    """Pillow has them as RGB, of their upper 8 bits: 255 of 65,535 were 0."""
    pixels = np.full((2, 4, 3), 255)
    ppm = b"P6 4 2 65535\n" + pixels.astype(">u2").tobytes()
    content = png_of_16_bits(pixels) if ending == "png" else ppm
    (folder / f"train/warm/deep.{ending}").write_bytes(content)
    with pytest.raises(DataError, match=r"warm/deep\.p\w+ is no readable .* not of 8 bits"):
        read(folder)


def test_a_ppm_of_fewer_than_256_levels_is_read(folder):
    pixels = np.full((2, 4, 3), 100, np.uint8)
    (folder / "train/warm/z.ppm").write_bytes(b"P6 4 2 200\n" + pixels.tobytes())
    np.testing.assert_allclose(read(folder)[0].x["x"][-1], 128 / 255, atol=1e-6)


def test_a_ppm_of_bits_written_out_is_read(folder):
    (folder / "train/warm/z.pgm").write_bytes(b"P1\n4 2\n1 0 1 0\n0 1 0 1\n")
    found = read(folder)[0].x["x"][-1]
    np.testing.assert_array_equal(found[0], [[0, 1, 0, 1], [1, 0, 1, 0]])


def test_pictures_that_cannot_be_used_are_told(folder):
    Image.new("RGB", (9, 9), RED).save(folder / "train/warm/z.png")
    with pytest.raises(DataError, match=r"2 sizes \(rows × columns: 2 × 4, 9 × 9\); data\.images"):
        read(folder)
    (folder / "train/warm/z.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train: warm/z\.png is no readable picture"):
        read(folder)
    data = DataSettings(train="train", test="test")
    with pytest.raises(DataError, match=r"train is a folder.*data\.images"):
        load_splits(data, folder)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no pictures .* a folder a class is wanted"):
        read(folder, train="empty")


def test_pictures_beside_the_folders_of_classes_are_refused(folder):
    """They were passed over."""
    Image.new("RGB", (4, 2), RED).save(folder / "train/loose.png")
    with pytest.raises(DataError, match=r"train: loose\.png lies beside the folders"):
        read(folder)


def test_rows_of_a_data_set_may_be_mappings(tmp_path):
    (tmp_path / "made_maps.py").write_text(
        "import numpy as np\n\n\n"
        "def rows():\n"
        "    return [{'input_ids': np.array([k, 1]), 'mask': np.ones(2), 'labels': 'ab'[k % 2]}\n"
        "            for k in range(4)]\n\n\n"
        "def single():\n"
        "    return [{'pixels': np.ones(3) * k, 'label': k} for k in range(4)]\n"
    )
    data = DataSettings(train="made_maps:rows", test="made_maps:rows")
    train, _ = load_splits(data, tmp_path)
    assert set(train.x) == {"input_ids", "mask"}
    assert train.labels.tolist() == ["a", "b", "a", "b"]
    single, _ = load_splits(
        DataSettings(train="made_maps:single", test="made_maps:single"), tmp_path
    )
    assert list(single.x) == ["x"]
    assert single.y.tolist() == [0, 1, 2, 3]
