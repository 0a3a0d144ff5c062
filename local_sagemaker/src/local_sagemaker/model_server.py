"""Serves one model: what runs inside a SageMaker inference container.

Started with a listening socket's file descriptor and the folder of an unpacked model.tar.gz. The model's
code/inference.py is driven by AWS's PyTorch inference toolkit. GET /ping answers once the model is loaded.
"""

import argparse
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from local_sagemaker.closed_imports import other_python
from local_sagemaker.container import start_parent_watchdog
from local_sagemaker.peers import accepted
from local_sagemaker.requirements import report_unmet


class Context(threading.local):
    """What the toolkit and a model's functions are told of the present request, and what they answer besides a body.

    The toolkit hands the first context it gets to every call, so there is one, and each thread sees its own request.
    """

    def __init__(self, model_dir: str) -> None:
        self.model_name = "model"
        self.system_properties = {"model_dir": model_dir}
        self.request_processor = [self]
        self.begin({})

    def begin(self, headers: Mapping[str, str] | Message) -> None:
        self._request_headers = headers
        self.status = 200
        self.headers = {"Content-Type": "application/json"}

    def get_request_properties(self) -> dict[str, str]:
        return dict(self._request_headers)

    def get_request_header(self, index: int, name: str) -> str | None:
        return self._request_headers.get(name)

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status = code

    def set_response_content_type(self, index: int, value: str) -> None:
        self.headers["Content-Type"] = value

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.headers[name] = value


class Model:
    """A loaded model; `predict` may be called from several threads."""

    def __init__(self, model_dir: str) -> None:
        import numpy as np
        from sagemaker_inference import content_types, decoder
        from sagemaker_inference.transformer import Transformer
        from sagemaker_pytorch_serving_container.default_pytorch_inference_handler import (
            DefaultPytorchInferenceHandler,
        )

        # The toolkit would unpickle what a request contains.
        decoder._decoder_map[content_types.NPY] = lambda body: np.load(BytesIO(body), allow_pickle=False)
        report_unmet(f"{model_dir}/code")
        self._context = Context(model_dir)
        self._transformer = Transformer(DefaultPytorchInferenceHandler())
        self._transformer.validate_and_initialize(model_dir, self._context)

    def predict(self, body: bytes, headers: Mapping[str, str] | Message) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        self._context.begin(headers)
        result: Any = self._transformer.transform([{"body": body}], self._context)[0]
        answer = result if isinstance(result, bytes) else str(result).encode()
        return self._context.status, self._context.headers, answer


class ModelServer(ThreadingHTTPServer):
    """A thread per connection, and the endpoint keeps one for each request in flight; `workers` of them predict."""

    daemon_threads = True

    def __init__(
        self, listener: socket.socket, model: Model, workers: int, seconds: float, worker_delay: float = 0.0
    ) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket = listener
        self.model = model
        self.workers = threading.BoundedSemaphore(workers)
        self._seconds = seconds
        self._first_worker_at = time.monotonic() + worker_delay
        self._began: dict[int, float] = {}

    def predict(self, body: bytes, headers: Mapping[str, str] | Message) -> tuple[int, dict[str, str], bytes]:
        """The model's answer, when one of the workers is free; 503 while there is none yet."""
        if time.monotonic() < self._first_worker_at:
            return 503, {}, b"No worker is available to serve request"
        thread = threading.get_ident()
        with self.workers:
            self._began[thread] = time.monotonic()
            try:
                return self.model.predict(body, headers)
            except BaseException as error:  # SystemExit among them: the model answers, or says why not
                return 500, {}, repr(error).encode()
            finally:
                del self._began[thread]

    @property
    def healthy(self) -> bool:
        """False if a prediction takes longer than a model may: its worker will not come back."""
        return all(time.monotonic() - began < self._seconds for began in list(self._began.values()))


class Handler(BaseHTTPRequestHandler):
    """GET /ping and POST /invocations."""

    server: ModelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is one write
    own_connection = False

    def parse_request(self) -> bool:
        """Looks at who sends once for each connection, which brings many requests."""
        if super().parse_request():
            self.own_connection = self.own_connection or accepted(self)
            return self.own_connection
        return False

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/ping" and self.server.healthy else 503, {}, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(*self.server.predict(body, self.headers))

    def log_message(self, *details: object) -> None:
        """The model's log is the model's."""

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def main() -> None:
    start_parent_watchdog()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of a listening socket")
    parser.add_argument("--model-dir", required=True, help="folder of the unpacked model.tar.gz")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest time of a prediction")
    parser.add_argument("--worker-delay", type=float, default=0.0, help="seconds before the first worker is there")
    arguments = parser.parse_args()
    sys.path.insert(0, f"{arguments.model_dir}/code")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if line := other_python():
        logging.info(line)
    # The toolkits' own variable; their default is a worker per CPU as well.
    workers = int(os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS") or os.cpu_count() or 1)
    listener, model = socket.socket(fileno=arguments.fd), Model(arguments.model_dir)
    server = ModelServer(listener, model, workers, arguments.seconds, arguments.worker_delay)
    logging.info("the model is loaded and answers, %d requests at once", workers)
    server.serve_forever()
