"""A bundle's mixed graph behind LitServe, with its batching: run by an environment that has it.

    PYTHON litserve_app.py MODEL.onnx PORT THREADS TABLES.npz

TABLES holds the rows of all domains, where there are more than the graph has by default.

Nothing of prunion is imported. Bodies are raw bytes both ways, which is the least that LitServe's
front can be given to do; domains share batches here too, because the graph is prunion's.
"""

# No `from __future__ import annotations`: FastAPI reads the annotation of a body as it stands here.
import sys
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Body
from starlette.responses import Response

MAX_BATCH, DELAY = 32, 0.002


class MixedGraph(litserve.LitAPI):  # type: ignore[misc]
    """`domain` as four bytes, then the image → logits."""

    def __init__(self, graph: str, threads: int, tables: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=DELAY, enable_async=False)
        self.graph = graph
        self.threads = threads
        self.tables = tables

    def setup(self, device: str) -> None:
        """One session, in the worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(self.graph, options, providers=providers)
        self.fed = {}
        if self.tables:
            with np.load(self.tables) as file:
                self.fed = dict(file)
        self.side = self.session.get_inputs()[0].shape[1:]

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> tuple[int, np.ndarray]:
        """A body."""
        image = np.frombuffer(request, "<f4", offset=4).reshape(self.side)
        return int.from_bytes(request[:4], "little"), image

    def batch(self, inputs: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Several."""
        domains, images = zip(*inputs, strict=True)
        return np.array(domains, np.int64), np.stack(images)

    def predict(self, batch: tuple[Any, Any]) -> np.ndarray:
        """`[N, Cmax]`."""
        domains, images = batch
        if images.ndim == 3:
            domains, images = np.array([domains], np.int64), images[None]
        found = self.session.run(None, {"domain": domains, "image": images, **self.fed})[0]
        return np.asarray(found)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """One by one."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        """Raw float32."""
        data = np.ascontiguousarray(output, "<f4").tobytes()
        return Response(data, media_type="application/octet-stream")


if __name__ == "__main__":
    api = MixedGraph(sys.argv[1], int(sys.argv[3]), "".join(sys.argv[4:]))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        port=int(sys.argv[2]), generate_client_file=False, num_api_servers=1, log_level="warning"
    )
