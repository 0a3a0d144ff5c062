"""Serves one model: what runs inside a SageMaker inference container.

Started with a listening socket's file descriptor and the folder of an unpacked model.tar.gz. The model's
code/inference.py is driven by AWS's inference toolkit. GET /ping answers once the model is loaded.
"""

import argparse
import logging
import sys
from typing import Any

import anyio.to_thread
import uvicorn
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class RequestProcessor:
    """The headers of one request, as the toolkit asks for them."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def get_request_properties(self) -> dict[str, str]:
        return self._headers


class Context:
    """What the toolkit wants to know of one request, and what it answers besides the body."""

    def __init__(self, model_dir: str, headers: dict[str, str]) -> None:
        self.system_properties = {"model_dir": model_dir}
        self.request_processor = [RequestProcessor(headers)]
        self.status = 200
        self.content_type = "application/json"

    def set_response_status(self, code: int = 200, phrase: str = "") -> None:
        self.status = code

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_type = value


def create_app(model_dir: str) -> Starlette:
    from sagemaker_inference.transformer import Transformer

    transformer = Transformer()
    transformer.validate_and_initialize(model_dir, Context(model_dir, {}))
    one_at_a_time = CapacityLimiter(1)

    def predict(body: bytes, headers: dict[str, str]) -> Response:
        context = Context(model_dir, headers)
        result: Any = transformer.transform([{"body": body}], context)[0]
        return Response(result, status_code=context.status, media_type=context.content_type)

    async def invocations(request: Request) -> Response:
        body = await request.body()
        headers = {"Content-Type": request.headers.get("content-type", ""), "Accept": request.headers.get("accept", "")}
        return await anyio.to_thread.run_sync(predict, body, headers, limiter=one_at_a_time)

    async def ping(request: Request) -> Response:
        return Response()

    return Starlette(routes=[Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of a listening socket")
    parser.add_argument("--model-dir", required=True, help="folder of the unpacked model.tar.gz")
    arguments = parser.parse_args()
    sys.path.insert(0, f"{arguments.model_dir}/code")
    app = create_app(arguments.model_dir)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.info("the model is loaded and answers")
    uvicorn.run(app, fd=arguments.fd, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
