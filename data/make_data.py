"""Write the bundled data sets from scikit-learn: `python data/make_data.py [folder]`.

The result depends on nothing but scikit-learn's copies of the data; a test compares it with
the files that are committed.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_digits

DIGITS_TRAIN = 1500
DIABETES_TRAIN = 353
# scikit-learn calls the six blood serum measurements s1 … s6.
DIABETES_FEATURES = ["age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu"]


def digits() -> pd.DataFrame:
    """1,797 images of 8 × 8 pixels, whole numbers 0 … 16, column `pRC` for row R, column C."""
    bunch = load_digits()
    columns = [f"p{row}{column}" for row in range(8) for column in range(8)]
    frame = pd.DataFrame(bunch.data.astype(int), columns=columns)
    return frame.assign(label=bunch.target)


def diabetes() -> pd.DataFrame:
    """442 patients, ten features in standard deviations of the training rows, `progression`.

    A column of the unscaled table becomes (x − mean) / std, so the curvature of a linear model
    is well conditioned and a perturbation influence reads "per standard deviation". The
    progression score (25 … 346) is divided by 100.
    """
    bunch = load_diabetes(scaled=False)
    train = bunch.data[:DIABETES_TRAIN]
    standardised = (bunch.data - train.mean(axis=0)) / train.std(axis=0)
    frame = pd.DataFrame(np.round(standardised, 6), columns=DIABETES_FEATURES)
    return frame.assign(progression=np.round(bunch.target / 100, 6))


def write(frame: pd.DataFrame, n_train: int, folder: Path) -> None:
    """`train.csv` with the first `n_train` rows and `test.csv` with the rest, ids in front."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"train": frame[:n_train], "test": frame[n_train:]}.items():
        table = rows.copy()
        table.insert(0, "id", [f"{name}-{position:04d}" for position in range(len(rows))])
        table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        print(f"{folder / name}.csv: {len(rows)} rows")


def main(folder: Path) -> None:
    write(digits(), DIGITS_TRAIN, folder / "digits")
    write(diabetes(), DIABETES_TRAIN, folder / "diabetes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
