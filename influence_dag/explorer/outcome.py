"""What an edit is predicted to do to the test losses, and what a refit did.

Dropping training row i changes the loss of test row j by about `I[j, i] / n`; relabelling it by
about `(I[j, i] - I'[j, i]) / n`, where I' is of the row with its new label. Several marks add up,
to first order.
"""

import csv
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.errors import StoreError
from influence_dag.explorer.edited import copies
from influence_dag.explorer.marks import FORMAT, Marks
from influence_dag.explorer.numbers import POINTS, agreement, number, numbers
from influence_dag.explorer.opened import Opened, Rows, View
from influence_dag.explorer.predictions import is_label, predictions
from influence_dag.explorer.shown import at

Marked = Mapping[str, Mapping[str, Any]]
NOTHING_TOLD = {
    "made": "", "method": None, "damping": None, "counted": {"drop": 0, "relabel": 0}, "said": [],
    "copies": [], "marks": 0,
}  # fmt: skip
Relabelled = Mapping[tuple[str, str], NDArray]  # (id, new label) → I' of every test row


def predicted(view: View, marks: Marked, relabelled: Relabelled) -> dict[str, Any]:
    """The change of each test row's loss, and which marks it is of; NaN where none is foretold."""
    there = {name: mark for name, mark in marks.items() if name in view.train.positions}
    present = {name: mark for name, mark in there.items() if not _followed(view.train, name, mark)}
    drops = [name for name, mark in present.items() if mark["action"] == "drop"]
    wanted = {n: mark["label"] for n, mark in present.items() if mark["action"] == "relabel"}
    known = {name: label for name, label in wanted.items() if (name, label) in relabelled}
    change = _sum_of(view, [*drops, *known])
    for pair in known.items():
        change = change - relabelled[pair]
    return {
        "change": np.full(len(view.test), np.nan) if view.no_change else change / view.n,
        "drops": len(drops),
        "relabels": len(known),
        "unknown": {name: label for name, label in wanted.items() if name not in known},
        "done": sum(_followed(view.train, name, mark) for name, mark in marks.items()),
    }


def _sum_of(view: View, names: list[str]) -> NDArray[np.float64]:
    """The sum of some training rows' influences on each test row, read by whole chunks."""
    slots = view.train.slots[view.train.places(names)]
    size = view.influences.variables["influences"].chunks[-1]
    total = np.zeros(len(view.test))
    for chunk in np.unique(slots // size).tolist():
        first = chunk * size
        inside = slots[slots // size == chunk] - first
        block = view.columns(slice(first, first + size))
        total += block[:, inside].sum(axis=1)
    return total


def outlook(view: View, marks: Marked, relabelled: Relabelled) -> dict[str, Any]:
    """The prediction as the page shows it: the sum, and the test rows that change most."""
    prediction = predicted(view, marks, relabelled)
    change = prediction.pop("change")
    order = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")[:10]
    loss = view.said("test_loss", "test")
    mean = None if loss is None or not len(loss) else number(np.nanmean(loss))
    rows = [{"id": view.test.ids[k], "change": number(change[k])} for k in order.tolist()]
    finite = change[np.isfinite(change)]
    told = {
        "mean": number(finite.mean()) if len(finite) else None,
        "better": int((finite < 0).sum()),
        "worse": int((finite > 0).sum()),
        "mean_loss": mean,
        "strongest": rows,
        "at": at(view),
        "n": view.n,
        "no_change": view.no_change,
    }
    return prediction | told


def export(view: View, marks: Marks, relabelled: Relabelled) -> dict[str, Any]:
    """Freeze the marks as an edit: a table, an edited copy of the data, and the prediction."""
    marked = marks.all()
    if not any(mark["action"] != "keep" for mark in marked.values()):
        raise StoreError("nothing is marked to be dropped or relabelled")
    files, said = copies(view.opened, view.method, marked)
    copied = {f"edited-{name}": content for name, content in files.items()}
    prediction = predicted(view, marked, relabelled)
    if view.no_change:
        said.append(f"Nothing is predicted. {view.no_change}")
    elif unknown := len(prediction["unknown"]):
        said.append(
            f"The prediction leaves out {unknown} relabelled rows: the gradients under their new "
            "labels need the study's code, and were not computed."
        )
    dataset = view.opened.version("dataset")
    told = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **at(view),
        "n": view.n,
        "dataset": {"version": dataset.number, "data_version": dataset.data_version},
        "counted": {"drop": prediction["drops"], "relabel": prediction["relabels"]},
        "copies": sorted(copied),
        "said": said,
        "marks": marked,
    }
    content = {
        "marks.csv": _csv(view, marked),
        "predicted.npz": _arrays(view, prediction["change"]),
        "edit.json": json.dumps(told, indent=1).encode(),
    }
    done = marks.freeze(content | copied)
    return {"number": done, "folder": f"{marks.shown}/{done:04d}", **told}


def _csv(view: View, marked: Marked) -> bytes:
    """The marks as a table: what the row is, what it is to be, why."""
    buffer, rows = io.StringIO(), view.train
    seen = predictions(view, "train")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "action", "label", "new_label", "note"])
    for name, mark in marked.items():
        place = rows.positions.get(name)
        label = "" if place is None else seen.label(place) or ""
        writer.writerow([name, mark["action"], label, mark.get("label", ""), mark.get("note", "")])
    return buffer.getvalue().encode()


def _arrays(view: View, change: NDArray) -> bytes:
    """What was predicted, the losses before, and the rows that there were."""
    buffer, test, train = io.BytesIO(), view.test, view.train
    losses = view.said("test_loss", "test")
    wrong = predictions(view, "test").wrong
    np.savez_compressed(
        buffer,
        test=np.array(test.ids, str),
        test_keys=test.keys,
        predicted=change,
        before=np.full(len(test), np.nan) if losses is None else losses,
        wrong=np.zeros(0, bool) if wrong is None else wrong,
        train=np.array(train.ids, str),
        keys=train.keys,
    )
    return buffer.getvalue()


def outcomes(opened: Opened, marks: Marks) -> list[dict[str, Any]]:
    """Every edit, newest first, with what became of it."""
    return [outcome(opened, marks, number_) for number_ in reversed(marks.edits)]


def outcome(opened: Opened, marks: Marks, number_: int) -> dict[str, Any]:
    """An edit's prediction beside what the refit did, once the data were refreshed."""
    place = {"number": number_, "folder": f"{marks.shown}/{number_:04d}"}
    try:
        told = marks.edit(number_)
    except StoreError as error:
        return place | NOTHING_TOLD | {"state": "unreadable", "why": str(error)}
    shown = place | {name: told[name] for name in ("made", "method", "damping", "counted", "said")}
    shown |= {"copies": told["copies"], "marks": len(told["marks"])}
    try:
        with np.load(marks.place(number_) / "predicted.npz", allow_pickle=False) as arrays:
            before = dict(arrays)
    except (OSError, ValueError) as error:
        return shown | {"state": "unreadable", "why": f"predicted.npz cannot be read: {error}"}
    try:
        if waiting := _waits_for(opened, told):
            return shown | {"state": "waiting", "why": waiting}
        view = opened.view(told["method"])  # of its losses, which are the same at every λ
        return shown | _compared(view, before, told["marks"])
    except StoreError as error:  # the other edits, and the marks, can be looked at all the same
        return shown | {"state": "unreadable", "why": str(error)}


def _waits_for(opened: Opened, told: dict[str, Any]) -> str | None:
    """Why the refit is not to be seen yet; None once it is."""
    dataset, model = opened.version("dataset"), opened.version("model")
    if dataset.data_version == told["dataset"]["data_version"]:
        return "the data are as they were: put the edited copy in their place and refresh the study"
    if model.attrs.get("train_rows") != opened.rows(dataset, "train").axis.fingerprint:
        return "the model was not fitted to the data as they are now (pinned, given, or not yet)"
    summary = opened.view(told["method"]).summary
    if summary is None or summary.attrs.get("model_data_version") != model.data_version:
        return f"the refresh has not reached {told['method']} yet"
    return None


def _compared(view: View, before: dict[str, NDArray], marked: Marked) -> dict[str, Any]:
    now, at_ = view.said("test_loss", "test"), _same_tests(view.test, before)
    if now is None:
        return {"state": "unreadable", "why": "the losses of the test rows are not stored"}
    actual = np.where(at_ < 0, np.nan, now[np.maximum(at_, 0)]) - before["before"]
    both = np.isfinite(actual) & np.isfinite(before["predicted"])
    x, y, known = before["predicted"][both], actual[both], np.isfinite(actual)
    few = np.flatnonzero(both)[:: max(1, -(-int(both.sum()) // POINTS))]
    wrong = predictions(view, "test").wrong
    return {
        "state": "done",
        "points": {
            "ids": before["test"][few].tolist(),
            "predicted": numbers(before["predicted"][few]),
            "actual": numbers(actual[few]),
        },
        "rows": int(both.sum()),
        "predicted_mean": number(x.mean()) if len(x) else None,
        "actual_mean": number(actual[known].mean()) if known.any() else None,
        "loss_before": number(before["before"][known].mean()) if known.any() else None,
        "loss_now": number((before["before"] + actual)[known].mean()) if known.any() else None,
        "wrong_before": int(before["wrong"].sum()) if len(before["wrong"]) else None,
        "wrong_now": None if wrong is None else int(wrong.sum()),
        "test_rows": len(view.test),
        **agreement(x, y),
        **_done(view.train, before, marked),
    }


def _same_tests(now: Rows, before: dict[str, NDArray]) -> NDArray[np.int64]:
    """Where each test row is now, −1 where it is gone or another row has its name."""
    places = now.places(before["test"].tolist())
    if "test_keys" not in before:  # of an edit that was exported without them
        return places
    return np.where(now.keys[places] == before["test_keys"], places, -1)


def _done(now: Rows, before: dict[str, NDArray], marked: Marked) -> dict[str, Any]:
    """Which marks the data have followed, and what else became of the rows."""
    keys = dict(zip(before["train"].tolist(), before["keys"].tolist(), strict=True))
    done = sum(_followed(now, name, mark) for name, mark in marked.items())
    acted = {name for name, mark in marked.items() if mark["action"] != "keep"}
    else_ = [name for name in keys.keys() - acted if name not in now.positions]
    changed = [
        name
        for name, place in now.positions.items()
        if name not in acted and keys.get(name) != int(now.keys[place])
    ]
    return {"followed": done, "acted": len(acted), "otherwise": len(else_) + len(changed)}


def _followed(now: Rows, name: str, mark: Mapping[str, Any]) -> bool:
    if mark["action"] == "keep":
        return False
    place = now.positions.get(name)
    if mark["action"] == "drop" or place is None or now.labels is None:
        return mark["action"] == "drop" and place is None
    return is_label(now.labels[place], mark["label"])
