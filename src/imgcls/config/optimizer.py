"""Keys of an optimizer beside its own: rules for groups of parameters, and how rate and decay are meant."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from imgcls.config import check as configs

Node = dict[str, Any]  # a call: `_target_` and its keyword arguments
Names = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(lambda names: [names] if isinstance(names, str) else names),
]


class GroupRule(BaseModel):
    """A group of parameters by rule: which ones, and the optimizer's options for them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    match: Names
    lr: Annotated[float | None, Field(ge=0)] = None
    weight_decay: Annotated[float | None, Field(ge=0)] = None
    epochs: Annotated[float | None, Field(gt=0)] = None  # they learn for so long alone

    def options(self) -> Node:
        return {key: value for key, value in self.model_dump(exclude={"match"}).items() if value is not None}


class OptimizerRules(BaseModel):
    """Keys of an optimizer, beside its own, that say which parameters get which of its options."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    groups: Annotated[dict[str, GroupRule], BeforeValidator(lambda groups: groups or {})] = Field(
        default_factory=dict
    )
    lr_per_256: Annotated[float | None, Field(gt=0)] = None
    decay_without_lr: bool = False

    @classmethod
    def read(cls, optimizer: Node) -> Self:
        """Returns the keys of an optimizer's config. Raises UserError: a value does not fit."""
        own = {key: value for key, value in optimizer.items() if key in cls.model_fields}
        return configs.typed(own, cls, "optimizer")

    @classmethod
    def without(cls, optimizer: Node) -> Node:
        """Returns the optimizer's own call."""
        return {key: value for key, value in optimizer.items() if key not in cls.model_fields}
