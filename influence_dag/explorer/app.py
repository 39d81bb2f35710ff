"""What the explorer's server answers: one page, JSON that is read lazily from the store, pictures.

The server knows one study. It reads; what it writes are marks and edits beside the store. Code of
the study runs only for what is asked for by `/api/compute` and `/api/relabels`.
"""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import cache, partial
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from influence_dag.datasets.slots import Split
from influence_dag.errors import InfluenceDagError, StoreError
from influence_dag.explorer import clouds, outcome, shown
from influence_dag.explorer.content import Contents, overlay, picture
from influence_dag.explorer.guard import Guard
from influence_dag.explorer.marks import Marks
from influence_dag.explorer.numbers import number
from influence_dag.explorer.opened import Opened, Results, View
from influence_dag.explorer.pair import Maps, pair
from influence_dag.explorer.predictions import is_label, labels_of, predictions

PAGE = {
    "/": ("index.html", "text/html"),
    "/explorer.css": ("explorer.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in ("explorer", "parts", "draw")},
}
RELABELLED = 2_000  # rows whose gradients under a new label are kept
Answer = Callable[[Request], Any]


class Explorer:
    """The study that is looked at, and what is kept of it between two clicks."""

    def __init__(self, results: Results):
        self.opened = Opened(results)
        self.contents = Contents(self.opened)
        self.maps = Maps(self.contents)
        self.marks = Marks(results.store.address)
        self._relabelled: OrderedDict[tuple, NDArray] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def view(self, request: Request, prefix: str = "") -> View:
        """The method, damping and version that a question is about."""
        asked = {
            name.removeprefix(prefix): v
            for name, v in request.query_params.items()
            if name.startswith(prefix)
        }
        damping, version = asked.get("damping"), asked.get("version")
        return self.opened.view(
            asked.get("method") or None,
            _number(damping, "damping") if damping else None,
            _whole(version, "version") if version else None,
        )

    def study(self, request: Request) -> dict[str, Any]:
        return shown.study(self.opened) | {"marks": len(self.marks.all())}

    def rows(self, request: Request) -> dict[str, Any]:
        view, asked, split = self.view(request), request.query_params, _split(request)
        wanted = shown.Asked(
            label=asked.get("label") or None,
            wrong=asked.get("wrong") == "1",
            search=asked.get("search", "")[:200],
            sort=asked.get("sort") or shown.SORTS[split][0],
            up=asked.get("up") == "1",
            page=max(0, _whole(asked.get("page") or "0", "page")),
        )
        return shown.table(view, split, wanted, self.marks.all())

    def row(self, request: Request) -> dict[str, Any]:
        view, name = self.view(request), request.query_params.get("id", "")
        return shown.one(view, self.contents, _split(request), name, self.marks.all())

    def compare(self, request: Request) -> dict[str, Any]:
        view, other = self.view(request), self.view(request, "with_")
        name = request.query_params.get("id", "")
        return clouds.beside(view, other, self.contents, _split(request), name)

    def pair(self, request: Request) -> dict[str, Any]:
        view, asked = self.view(request), request.query_params
        names = asked.get("test", ""), asked.get("train", "")
        return pair(view, self.contents, self.maps, *names, self.marks.all())

    def scatter(self, request: Request) -> dict[str, Any]:
        return clouds.scatter(self.view(request))

    def picture(self, request: Request) -> Response:
        rows, name = (
            self.view(request).split(_split(request)),
            request.query_params.get("input", ""),
        )
        place = rows.position(request.query_params.get("id", ""))
        if (found := self.contents.values(rows, place, name)) is None:
            raise HTTPException(404, "no such picture")
        look, values = found
        return _png(picture(values, look.about(name)["ends"]))

    def map(self, request: Request) -> Response:
        view, asked = self.view(request), request.query_params
        maps, _ = self.maps.of(view, asked.get("test", ""), asked.get("train", ""))
        if (name := asked.get("input", "")) not in maps:
            raise HTTPException(404, "no such map")
        return _png(overlay(maps[name]))

    def compute(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """Have a pair's map computed with the study's code."""
        self.maps.compute(self.view(request), _text(body, "test"), _text(body, "train"))
        return {"done": True}

    def mark(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        view, name = self.view(request), _text(body, "id")
        label, action = body.get("label"), body.get("action")
        if label is not None:
            _text(body, "label")
        if action is not None:
            view.train.position(name)
            if action == "relabel":
                _check_label(view, name, label)
        note = body.get("note", "")
        self.marks.put(name, action, label, note if isinstance(note, str) else "")
        return {"marks": self.marks.all()}

    def clear(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        self.marks.clear()
        return {"marks": {}}

    def edits(self, request: Request) -> dict[str, Any]:
        """The marks with their rows, what they are predicted to do, and earlier edits."""
        view, marks = self.view(request), self.marks.all()
        rows = view.train
        marked = [
            {"id": name, "mark": mark, "row": shown.row(view, self.contents, "train", place, marks)}
            if (place := rows.positions.get(name)) is not None
            else {"id": name, "mark": mark, "row": None}
            for name, mark in marks.items()
        ]
        return {
            "marks": marked,
            "outlook": outcome.outlook(view, marks, self._known(view)) if marks else None,
            "edits": outcome.outcomes(self.opened, self.marks),
            "folder": self.marks.shown,
            "project": shown.project(self.opened),
        }

    def export(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        view = self.view(request)
        return outcome.export(view, self.marks, self._known(view))

    def relabels(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """Have the gradients of relabelled rows computed with the study's code."""
        view = self.view(request)
        wanted = outcome.predicted(view, self.marks.all(), self._known(view))["unknown"]
        if wanted:
            with self._one_at_a_time:
                self._relabel(view, wanted)
        return {"computed": len(wanted)}

    def _relabel(self, view: View, wanted: dict[str, str]) -> None:
        view.check_current()
        influences = self.opened.results.relabelled_influences(view.method, wanted)
        view.check_current()  # a refresh may have come in between
        influences = influences.isel(damping=view.damping, missing_dims="ignore")
        order = {name: place for place, name in enumerate(map(str, influences.train.values))}
        for name, label in wanted.items():
            values = np.asarray(influences.values[:, order[name]], np.float64)
            self._relabelled[(*_numbers_of(view), name, label)] = values
        while len(self._relabelled) > RELABELLED:
            self._relabelled.popitem(last=False)

    def _known(self, view: View) -> dict[tuple[str, str], NDArray]:
        mine = _numbers_of(view)
        return {key[-2:]: v for key, v in list(self._relabelled.items()) if key[:-2] == mine}


def _numbers_of(view: View) -> tuple:
    return view.method, view.damping, view.influences.data_version


def _check_label(view: View, name: str, label: Any) -> None:
    """A new label is one of those that there are, or a number where labels are numbers."""
    labels = view.train.labels
    if labels is None:
        raise StoreError(f"{name}: rows whose target is not one number cannot be relabelled")
    if labels.dtype.kind == "f" or not predictions(view, "train").are_classes:
        if number(_number(label, "label")) is None:
            raise StoreError(f"{name}: the label {label!r:.80} is not a number")
    elif not any(is_label(each, str(label)) for each in set(labels.tolist())):
        many = f"{len(set(labels.tolist())):,} that there are"
        known = ", ".join(labels_of(view, "train")) or many
        raise StoreError(f"{name}: {label!r:.80} is none of the labels {known}")


def _split(request: Request) -> Split:
    return "train" if request.query_params.get("split") == "train" else "test"


def _number(text: Any, what: str, kind: type = float) -> Any:
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        wanted = "a whole number" if kind is int else "a number"
        raise StoreError(f"{what} is {text!r:.80}; {wanted} is wanted") from error


_whole = partial(_number, kind=int)


def _text(body: dict[str, Any], name: str) -> str:
    if not isinstance(value := body.get(name), str):
        raise StoreError(f"{name} is {value!r:.80}; a text is wanted")
    return value


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png", headers={"Cache-Control": "max-age=3600"})


def _answered(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """A question, answered in a thread; what is wrong is a sentence, not a traceback."""

    async def endpoint(request: Request) -> Response:
        try:
            given = [await _body(request)] if request.method == "POST" else []
            answered = await run_in_threadpool(answer, request, *given)
        except (InfluenceDagError, NotImplementedError) as error:
            return JSONResponse({"error": f"{error}"}, 400)
        return answered if isinstance(answered, Response) else JSONResponse(answered)

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise StoreError("the request holds no JSON") from error
    if not isinstance(body, dict):
        raise StoreError("the request is no JSON object")
    return body


@cache
def _file(name: str) -> bytes:
    return files("influence_dag.explorer").joinpath("page", name).read_bytes()


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Response(_file(name), media_type=f"{kind}; charset=utf-8")

    return endpoint


def app_of(results: Results, hosts: Iterable[str]) -> ASGIApp:
    """The application; it answers to those who ask for it under one of these hosts."""
    explorer = Explorer(results)
    reads = ("study", "rows", "row", "compare", "pair", "scatter", "picture", "map", "edits")
    writes = ("compute", "mark", "clear", "export", "relabels")
    routes = [Route(path, _static(*file)) for path, file in PAGE.items()]
    for names, methods in ((reads, ["GET"]), (writes, ["POST"])):
        answers = ((each, _answered(getattr(explorer, each))) for each in names)
        routes += [Route(f"/api/{each}", answer, methods=methods) for each, answer in answers]
    return Guard(Starlette(routes=routes), frozenset(hosts))
