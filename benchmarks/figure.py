"""The table that benchmarks print: figure, value, goal, n."""

from dataclasses import dataclass

HEADING = f"{'figure':<62} {'value':>9} {'':<4} {'goal':<8} {'hoped':<8} {'':<7} n"


@dataclass(frozen=True)
class Figure:
    """One line of the table; a goal is what the value must not exceed, or must reach, or is only looked at.

    hoped: a further value, of the same direction as the goal, that is not demanded.
    """

    name: str
    value: float
    unit: str
    n: str
    at_most: float | None = None
    at_least: float | None = None
    hoped: float | None = None

    @property
    def missed(self) -> bool:
        return (self.at_most is not None and self.value > self.at_most) or (
            self.at_least is not None and self.value < self.at_least
        )

    def __str__(self) -> str:
        sign = "<=" if self.at_most is not None else ">="
        demanded = self.at_most if self.at_most is not None else self.at_least
        goal, hoped = ("-" if limit is None else f"{sign} {limit:g}" for limit in (demanded, self.hoped))
        verdict = "MISSED" if self.missed else "" if demanded is None else "met"
        return f"{self.name:<62} {self.value:>9.4g} {self.unit:<4} {goal:<8} {hoped:<8} {verdict:<7} {self.n}"
