"""The data part of a scenario: where images come from, and how they are dealt to clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from fedsim.scenario.fields import MOST_SAMPLES, NO_BOOLEAN, Part


class PartitionPart(Part):
    """How training samples are dealt to clients.

    `iid`; `dirichlet` with `alpha`; `shards` with `shards_per_client`; `pathological` with `classes_per_client`;
    `sizes` with `sizes`, one number a client.
    """

    name: Literal["iid", "dirichlet", "shards", "pathological", "sizes"] = "iid"
    """How the training samples are dealt."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] | None = None
    """Of `dirichlet`, 0.5 by default: the smaller, the less alike the clients are."""
    shards_per_client: Annotated[int, Field(ge=1, le=MOST_SAMPLES), NO_BOOLEAN] | None = None
    """Of `shards`, 2 by default: runs of samples sorted by class."""
    classes_per_client: Annotated[int, Field(ge=1, le=MOST_SAMPLES), NO_BOOLEAN] | None = None
    """Of `pathological`, which needs it."""
    sizes: list[Annotated[int, Field(ge=1, le=MOST_SAMPLES), NO_BOOLEAN]] | None = None
    """Of `sizes`, which needs it: samples of each client."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> PartitionPart:
        own = {
            "dirichlet": "alpha",
            "shards": "shards_per_client",
            "pathological": "classes_per_client",
            "sizes": "sizes",
        }
        needed = own.get(self.name)
        for field in own.values():
            if field != needed and getattr(self, field) is not None:
                raise ValueError(f"{field} does not belong to partition {self.name!r}")
        if self.name in ("pathological", "sizes") and getattr(self, str(needed)) is None:
            raise ValueError(f"partition {self.name!r} needs {needed}")
        return self


class DataPart(pydantic.BaseModel):
    """Where the images come from; keys beside `name` and `partition` are parameters of that source."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str = "photos"
    """A data source (`fedsim list data`); its parameters stand beside the name."""
    partition: PartitionPart = PartitionPart()
    """How the training samples are dealt to the clients."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the source."""
        return dict(self.model_extra or {})
