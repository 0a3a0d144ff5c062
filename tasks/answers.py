"""What a model answers about an image: one probability per class, alone or with its outlier score."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

# Asks for both, as the workflow's functions do; otherwise a model answers the list alone.
ACCEPT = "application/json; verbose=true"
# Models tell outlier scores in units of their own limit.
OUTLIER_LIMIT = 1.0

_Probabilities = Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=1, max_length=1000)]


class Answer(Struct, gc=False):
    """outlier_score: over OUTLIER_LIMIT of an image of no class; None of a model that tells none."""

    probabilities: _Probabilities
    outlier_score: Annotated[float, Meta(ge=0)] | None = None


_ANSWER = msgspec.json.Decoder(Answer | _Probabilities)


def decode(text: str | bytes) -> Answer:
    """The answer in either form. Raises msgspec's errors, which are ValueErrors, if it is something else."""
    answer = _ANSWER.decode(text)
    return answer if isinstance(answer, Answer) else Answer(answer)
