"""Serves the classifier in AWS's Ray Serve image, which finds this file by config.yaml at the root of the archive.

https://aws.github.io/deep-learning-containers/ray/
"""

import sys
from pathlib import Path

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).resolve().parent


@serve.deployment
class ImageClassifier:
    """A replica with the model loaded. The body of a request is the picture; its answer JSON."""

    def __init__(self) -> None:
        # A replica is a process of its own, which gets this class by value and never imports this module.
        sys.path.insert(0, str(FOLDER / "code"))
        import serving

        self._serving = serving
        self._model = serving.load(FOLDER)

    async def __call__(self, request: Request) -> Response:
        serving = self._serving
        try:
            picture = serving.read_picture(await request.body())
        except serving.UnreadableImage as error:
            return Response(str(error), 400, media_type="text/plain")
        answer = serving.to_json(serving.classify(picture, self._model), request.headers.get("accept"))
        return Response(answer, media_type="application/json")


app = ImageClassifier.bind()  # type: ignore[attr-defined]
