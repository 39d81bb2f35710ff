"""Tables as people have them: separators, encodings, packed files, Arrow, frames from code."""

import csv
import gzip
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from influence_dag.datasets.sources.csv_files import _line, long_cells
from influence_dag.datasets.splits import load_splits
from influence_dag.errors import DataError
from influence_dag.study.data import CsvSettings, DataSettings

FRAME = pd.DataFrame(
    {
        "id": ["r0", "r1", "r2"],
        "größe": [1.5, -2.25, 1e-3],
        "n": [1, 2, 3],
        "label": ["süß", "sauer", "süß"],
    }
)


def read(folder, name, **options):
    data = DataSettings(train=name, test=name, **{"id": "id", "target": "label", **options})
    return load_splits(data, folder)[0]


def check(split):
    np.testing.assert_array_equal(split.x["x"], FRAME[["größe", "n"]])
    assert split.ids.tolist() == ["r0", "r1", "r2"]
    assert split.labels.tolist() == FRAME.label.tolist()


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ({"separator": ";", "decimal": ","}, {"sep": ";", "decimal": ","}),
        ({"separator": "\t"}, {"sep": "\t"}),
        ({"encoding": "latin-1"}, {"encoding": "latin-1"}),
        ({"encoding": "utf-16"}, {"encoding": "utf-16"}),
    ],
    ids=["decimal comma", "tabs", "latin-1", "utf-16"],
)
def test_a_csv_as_it_is_written(tmp_path, form, written):
    FRAME.to_csv(tmp_path / "t.csv", index=False, **written)
    check(read(tmp_path, "t.csv", csv=form))


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("x", ["1.500", "2.750", "3"]),
        ("label", ["1.500", "2.750", "3"]),
        ("weight", ["1,5", "1.500", "3"]),
    ],
)
def test_points_where_decimals_have_commas_are_no_decimals(tmp_path, cells, column):
    frame = pd.DataFrame({"id": ["r0", "r1", "r2"], "x": 1, "label": 2, "weight": 1})
    frame[column] = cells
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";")
    line = 2 + next(k for k, cell in enumerate(cells) if "." in cell)
    with pytest.raises(DataError, match=rf"line {line} .*1\.500.*decimals are written with ','"):
        read(tmp_path, "t.csv", csv={"separator": ";", "decimal": ","}, weight="weight")


def test_a_column_has_one_type_however_long_it_is(tmp_path, recwarn):
    """pandas reads pieces: those of digits alone were numbers, so that 007 was 7 there."""
    rows = "".join(f"{k},0.5,{'x' if k == 99_999 else '007'},{k % 2}\n" for k in range(100_000))
    (tmp_path / "long.csv").write_text(f"id,a,note,label\n{rows}")
    split = read(tmp_path, "long.csv", keep=["note"])
    assert set(split.kept["note"].tolist()) == {"007", "x"}
    assert not recwarn.list


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_whole_numbers_with_a_gap_that_travel_along_are_exact(tmp_path, name):
    """Two numbers of devices were one, of 2⁵³ and more."""
    devices = pd.array([2**53, 2**53 + 1, None], dtype="Int64")
    frame = FRAME.assign(device=devices, few=pd.array([1, 2, None], dtype="Int64"))
    write = frame.to_parquet if name.endswith("parquet") else frame.to_csv
    write(tmp_path / name, index=False)
    kept = read(tmp_path, name, keep=["device", "few"]).kept
    assert kept["device"].tolist() == [str(2**53), str(2**53 + 1), ""]
    np.testing.assert_array_equal(kept["few"], [1.0, 2.0, np.nan])


def test_lines_are_told_in_any_form(tmp_path):
    bad = FRAME.astype({"n": object})
    bad.loc[1, "n"] = "zwei"
    bad.to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",", encoding="latin-1")
    form = {"separator": ";", "decimal": ",", "encoding": "latin-1"}
    with pytest.raises(DataError, match=r"line 3 \(id 'r1'\), column 'n': seen 'zwei'"):
        read(tmp_path, "t.csv", csv=form)


def test_lines_of_spaces_are_counted_as_lines(tmp_path):
    (tmp_path / "t.csv").write_text("id,a,label\nr0,0.5,x\n  \nr1,zwei,y\n")
    with pytest.raises(DataError, match=r"line 4 \(id 'r1'\), column 'a': seen 'zwei'"):
        read(tmp_path, "t.csv")


def test_another_separator_or_encoding_is_told_with_its_setting(tmp_path):
    FRAME.to_csv(tmp_path / "t.csv", index=False, sep=";")
    with pytest.raises(DataError, match=r"data\.csv: \{separator: ';'\}"):
        read(tmp_path, "t.csv")
    FRAME.to_csv(tmp_path / "t.csv", index=False, encoding="latin-1")
    with pytest.raises(DataError, match=r"not a text file in UTF-8.*data\.csv: \{encoding"):
        read(tmp_path, "t.csv")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"separator": ",", "decimal": ","}, "both ','"),
        ({"encoding": "klingon"}, "no encoding that Python knows"),
        ({"separator": ""}, "at least 1"),
    ],
)
def test_forms_that_cannot_be_are_refused(form, said):
    with pytest.raises(ValueError, match=said):
        DataSettings(train="a", test="b", csv=form)


def test_packed_files_are_read(tmp_path):
    text = FRAME.to_csv(index=False).encode()
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text))
    check(read(tmp_path, "t.csv.gz"))
    with pa.CompressedOutputStream(str(tmp_path / "t.csv.zst"), "zstd") as file:
        file.write(text)
    check(read(tmp_path, "t.csv.zst"))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_damaged_packed_files_are_told(tmp_path, ending):
    (tmp_path / f"t.csv.{ending}").write_bytes(b"not packed")
    with pytest.raises(DataError, match=rf"t\.csv\.{ending}: not a readable file"):
        read(tmp_path, f"t.csv.{ending}")


@pytest.mark.parametrize("name", ["t.feather", "t.arrow"])
def test_arrow_files_are_read(tmp_path, name):
    FRAME.to_feather(tmp_path / name)
    check(read(tmp_path, name))


def test_labels_that_are_digits_in_text_are_whole_numbers(tmp_path):
    """In a .parquet they were decimals, and no classes: `suspects` took them for amounts."""
    for name, write in (("t.csv", pd.DataFrame.to_csv), ("t.parquet", pd.DataFrame.to_parquet)):
        write(FRAME.assign(label=["0", "2", "1"]), tmp_path / name, index=False)
        split = read(tmp_path, name)
        assert split.y.dtype == np.int64
        assert split.labels.tolist() == [0, 2, 1]
    FRAME.assign(label=["0", "2.5", "1"]).to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path, "t.parquet").y.tolist() == [0.0, 2.5, 1.0]


MADE = """
import numpy as np
import pandas as pd
import pyarrow as pa

FRAME = pd.DataFrame({"id": ["r0", "r1", "r2"], "größe": [1.5, -2.25, 1e-3], "n": [1, 2, 3],
                      "label": ["süß", "sauer", "süß"]})


def frame():
    return FRAME


def indexed():
    return FRAME.set_index("id")


def arrow():
    return pa.Table.from_pandas(FRAME)


def tokens():
    cells = {"id": [7, 8], "input_ids": [[1, 2, 3], [4, 5, 6]], "label": ["no", "yes"]}
    return pa.table(cells)


def ragged():
    return pa.table({"id": [7, 8], "input_ids": [[1, 2], [4]], "label": ["no", "yes"]})


def uneven():
    cells = [[[1], [1, 2]], [[1], [1, 2]]]
    return pd.DataFrame({"id": [7, 8], "input_ids": cells, "label": ["no", "yes"]})


def random():
    return FRAME.assign(n=np.random.default_rng().normal(size=3))


def weighed():
    return FRAME.assign(w=np.random.default_rng().uniform(size=3))


def noted():
    return FRAME.assign(note=np.random.default_rng().uniform(size=3))


def named():
    return FRAME.assign(id=np.random.default_rng().integers(2**60, size=3))
"""


@pytest.fixture
def made(tmp_path):
    (tmp_path / "made_tables.py").write_text(MADE)
    return tmp_path


@pytest.mark.parametrize("name", ["frame", "indexed", "arrow"])
def test_tables_that_code_makes(made, name):
    check(read(made, f"made_tables:{name}"))


def test_cells_that_are_lists_are_arrays(made):
    split = read(made, "made_tables:tokens")
    np.testing.assert_array_equal(split.x["x"], [[1, 2, 3], [4, 5, 6]])
    assert split.x["x"].dtype == np.int64
    assert split.labels.tolist() == ["no", "yes"]
    with pytest.raises(DataError, match="row 1 has input_ids of shape"):
        read(made, "made_tables:ragged")
    with pytest.raises(DataError, match="row 0, column 'input_ids': lists of several"):
        read(made, "made_tables:uneven")


def test_cells_that_are_lists_of_lists_are_arrays(tmp_path):
    """Arrow has them as arrays of arrays, which were "objects"."""
    cells = [[[1.0, 2.0], [3.0, 4.0], [5.0, k]] for k in (6.0, 7.0)]
    for kind in (pa.list_(pa.list_(pa.float64())), pa.list_(pa.list_(pa.float64(), 2), 3)):
        rows = {"id": ["a", "b"], "label": [0, 1], "x": pa.array(cells, kind)}
        pa.parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
        np.testing.assert_array_equal(read(tmp_path, "t.parquet").x["x"], cells)
    rows["x"] = pa.array([cells[0], [[1.0, 2.0], [3.0]]])
    pa.parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 1, column 'x': lists of several lengths"):
        read(tmp_path, "t.parquet")
    rows["x"] = pa.array([None, [1.0, 2.0]])
    pa.parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 1 has x of shape \(2,\), row 0 has \(\)"):
        read(tmp_path, "t.parquet")


@pytest.mark.parametrize("name", ["random", "weighed", "noted", "named"])
def test_a_table_that_is_drawn_anew_is_refused(made, name):
    beside = {"weighed": {"weight": "w"}, "noted": {"keep": ["note"]}}
    with pytest.raises(DataError, match="is another one when it is read again"):
        read(made, f"made_tables:{name}", **beside.get(name, {}))


@pytest.mark.parametrize("column", ["index", "level_0"])
def test_numbers_of_rows_that_pandas_has_made_a_column_are_no_feature(tmp_path, column):
    frame = FRAME.assign(**{column: [17, 3, 5]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=rf"'{column}' has another whole number in each row.*drop="):
        read(tmp_path, "t.csv")
    listed = {"columns": ["größe", column]}
    assert read(tmp_path, "t.csv", features=listed).feature_names == ("größe", column)
    for values in ([17, 3, 3], [17.5, 3, 5]):  # a price of shares, say
        frame.assign(**{column: values}).to_csv(tmp_path / "t.csv", index=False)
        assert column in read(tmp_path, "t.csv").feature_names


@pytest.mark.parametrize(
    ("there", "damage", "says"),
    [(b"sauer", b"\xff" * 5, "Wrapping"), (b"pandas_type", b"x" * 11, "'pandas_type'")],
)
def test_damage_of_any_kind_is_told(tmp_path, there, damage, says):
    """Pandas and Arrow raise errors of many types, the latter when texts are used."""
    FRAME.to_feather(tmp_path / "t.feather", compression="uncompressed")
    content = (tmp_path / "t.feather").read_bytes()
    (tmp_path / "t.feather").write_bytes(content.replace(there, damage))
    with pytest.raises(DataError, match=rf"t\.feather: not a readable \.feather file: .*{says}"):
        read(tmp_path, "t.feather")


def test_ids_that_nobody_named_are_no_feature(tmp_path):
    """In arrays and beside lists `id` is the id; in a .parquet the model was handed it."""
    frame = FRAME.assign(id=[17, 3, 5])
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'id' has another whole number in each row.*data\.id: id"):
        read(tmp_path, "t.parquet", id=None)
    assert read(tmp_path, "t.parquet").feature_names == ("größe", "n")


def test_the_limit_of_cells_is_put_back_and_never_lowered():
    before = csv.field_size_limit()
    with long_cells(10):
        assert csv.field_size_limit() == before
    with long_cells(before + 1):
        assert csv.field_size_limit() == before + 1
    assert csv.field_size_limit() == before


def test_tables_are_read_side_by_side_whatever_their_cells(tmp_path):
    """The limit of the reader that is done first ended the other."""
    texts = {"long": 200_000, "short": 3}
    for name, size in texts.items():
        rows = "".join(f"{k},{'x' * size},1.5,{k}\n" for k in range(3))
        (tmp_path / f"{name}.csv").write_text(f"id,text,a,label\n{rows}")

    def lines(name: str) -> int:
        content = (tmp_path / f"{name}.csv").read_bytes()
        return sum(_line(content, 2, CsvSettings()) for _ in range(300))

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lines, [*texts, *texts])) == {1200}
