"""The training rows that are behind a test row, as `top` prints them."""

from typing import TYPE_CHECKING, Any

import click

from influence_dag.cli.printing import heading, table

if TYPE_CHECKING:
    import xarray as xr

    from influence_dag.query.contents import Content
    from influence_dag.query.results import StudyResults


class Strongest:
    """The strongest rows of one test row, as values and as tables."""

    def __init__(
        self, results: "StudyResults", method: str, row: "xr.DataArray", k: int, content: bool
    ):
        from influence_dag.query.accessor import strongest
        from influence_dag.query.contents import Contents

        self.method, self.row = method, row
        self.ends = dict(zip(("helps", "harms"), strongest(row, k), strict=True))
        self.contents = Contents(results) if content else None

    def _content(self, split: Any, name: Any) -> "Content | None":
        return self.contents.of(split, [name])[0] if self.contents else None

    @property
    def _divisor(self) -> float | None:
        """What makes changes of them; None for products of gradients, which say nothing of it."""
        if "parameter²" in self.row.attrs["units"]:
            return None
        return self.row.attrs["weight_sum"]

    def values(self) -> dict[str, Any]:
        about = {name: self.row.attrs[name] for name in ("formula", "sign", "units")}
        test = self._row("test", self.row)
        ends = {
            end: [self._row("train", each) for each in array] for end, array in self.ends.items()
        }
        used = self.row.attrs.get("damping")
        if "damping" in self.row.coords:
            used = self.row.coords["damping"].item()
        return {"method": self.method, "damping": used, **about, "test": test, **ends}

    def _row(self, split: Any, each: "xr.DataArray") -> dict[str, Any]:
        name, label = each[split].item(), each.coords.get(f"{split}_label")
        told = {"id": name, "label": None if label is None else label.item()}
        if split == "train":
            told["influence"] = float(each)
            if self._divisor:
                told["change_when_left_out"] = float(each) / self._divisor
        content = self._content(split, name)
        if content:
            told |= {what: content.to_dict()[what] for what in ("kept", "inputs")}
        return told

    def print(self) -> None:
        from influence_dag.query.pictures import named_row
        from influence_dag.query.rows import of_sweep

        heading(f"{named_row(self.row, 'test')}, influences by {self.method}{of_sweep(self.row)}")
        self._print_content("test", self.row["test"].item())
        for end, array in self.ends.items():
            columns = [f"{end} most", "influence", *(["left out"] if self._divisor else [])]
            rows = [
                [
                    named_row(each, "train"),
                    f"{float(each):+.4g}",
                    *([f"{float(each) / self._divisor:+.2g}"] if self._divisor else []),
                ]
                for each in array
            ]
            click.echo()
            table(columns, rows, right=columns[1:])
            for each in array if self.contents else ():
                self._print_content("train", each["train"].item(), named_row(each, "train"))

    def _print_content(self, split: Any, name: Any, title: str = "") -> None:
        from influence_dag.query.text import content_lines

        content = self._content(split, name)
        if content:
            lines = [*([f"\n{title}"] if title else []), *content_lines(content)]
            click.echo("\n".join(lines))
