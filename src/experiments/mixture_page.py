"""Parameters of the pages on orthogonal classes of one rank."""

from typing import Any, Self

from pydantic import model_validator

from compendium import parameters
from compendium.parameters import Field
from molrg.model.mixture import MoLRG

__all__ = ["MixturePage"]


class MixturePage(parameters.Page):
    """K classes of rank d in n dimensions with background strength delta, and what a subclass adds."""

    num_classes: int = Field(ge=2, le=100, description="K")
    rank: int = Field(ge=1, le=100, description="d")
    dim: int = Field(ge=2, le=2000, description="n")
    delta: float = Field(gt=0, lt=1)

    @property
    def model(self) -> tuple[int, int, float]:
        """K, d and delta."""
        return self.num_classes, self.rank, self.delta

    def mixture(self, *background: Any, **options: Any) -> MoLRG:
        """The orthogonal mixture of these sizes, with options of `MoLRG.orthogonal`."""
        return MoLRG.orthogonal(self.num_classes, self.rank, self.dim, self.delta, *background, **options)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_classes * self.rank > self.dim:
            raise ValueError("num_classes * rank must be <= dim")
        return self
