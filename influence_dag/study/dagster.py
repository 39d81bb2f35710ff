"""Settings of how a study stands in Dagster; no number depends on them."""

import re
from collections.abc import Mapping

from pydantic import field_validator

from influence_dag.study.base import Settings, setting

_KEY_PART = re.compile(r"[A-Za-z0-9_.-]+")
_OWNER = re.compile(r"team:[A-Za-z0-9_-]+|\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")
_TAG = re.compile(r"([A-Za-z0-9_.-]{1,63}/)?[A-Za-z0-9_.-]{1,63}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")


def asset_path(key: str) -> str:
    """The key of an asset as text, `group/name`; a `ValueError` for what Dagster takes for none."""
    if not all(map(_KEY_PART.fullmatch, key.split("/"))):
        raise ValueError(
            f"{key!r} is no asset key: its parts, with / between them, are of the letters a to z "
            "and A to Z, digits, _, - and ., for example warehouse/patients"
        )
    return key


class DagsterSettings(Settings):
    """How the study's assets stand in Dagster; nothing that is computed depends on it."""

    key_prefix: str | None = setting(
        None, "put before the study's name in the keys of its assets, parts with / between"
    )
    owners: tuple[str, ...] = setting(
        (), "who answers for the assets: addresses of mail, or team:name"
    )
    tags: Mapping[str, str] = setting({}, "tags of all of its assets")

    @field_validator("key_prefix")
    @classmethod
    def _parts(cls, value: str | None) -> str | None:
        return value if value is None else asset_path(value)

    @field_validator("owners")
    @classmethod
    def _known_forms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if not _OWNER.fullmatch(owner):
                raise ValueError(f"{owner!r} is neither an address of mail nor team:name")
        return value

    @field_validator("tags")
    @classmethod
    def _as_dagster_takes_them(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, content in value.items():
            if not _TAG.fullmatch(name) or not _TAG_VALUE.fullmatch(content):
                raise ValueError(
                    f"{name}: {content}: names and values of tags have up to 63 letters, digits, "
                    "_, - and ., a name also one / between two such parts"
                )
        return value

    @property
    def prefix(self) -> tuple[str, ...]:
        """The parts of `key_prefix`."""
        return tuple(self.key_prefix.split("/")) if self.key_prefix else ()
