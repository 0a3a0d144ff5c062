"""Serves the classifier in AWS's Ray Serve image, which finds this file by config.yaml at the root of the archive.

https://aws.github.io/deep-learning-containers/ray/
"""

import sys
from pathlib import Path

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER / "code"))

from serving import UnreadableImage, classify, load, read_picture, to_json  # noqa: E402 found by the path above


@serve.deployment
class ImageClassifier:
    """A replica with the model loaded. The body of a request is the picture; its answer a JSON list."""

    def __init__(self) -> None:
        self._model = load(FOLDER)

    async def __call__(self, request: Request) -> Response:
        try:
            picture = read_picture(await request.body())
        except UnreadableImage as error:
            return Response(str(error), 400, media_type="text/plain")
        return Response(to_json(classify(picture, self._model)), media_type="application/json")


app = ImageClassifier.bind()
