"""What `sftbook serve` is compared with, as their own guides show them; serving_load.py starts it:

    python serving_peers.py pipeline RUN PORT THREADS
    python serving_peers.py litserve RUN PORT THREADS

`pipeline`: FastAPI and transformers.pipeline, one row a call. `litserve`: LitServe with batches of
32 rows and the same delay as ours, which hands whole batches to the pipeline.
"""
import sys

import torch
from transformers import pipeline


def classifier(run, threads):
    torch.set_num_threads(threads)
    return pipeline("text-classification", run, device="cpu", dtype=torch.float32)


def with_pipeline(run, port, threads):
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        text: str

    app, model = FastAPI(), classifier(run, threads)

    @app.post("/predict")
    def predict(request: Request):
        return model(request.text, truncation=True)[0]

    uvicorn.run(app, port=port, log_level="warning")


def with_litserve(run, port, threads):
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device):
            self.model = classifier(run, threads)

        def decode_request(self, request):
            return request["text"]

        def predict(self, texts):
            return self.model(list(texts), batch_size=32, truncation=True)

        def encode_response(self, output):
            return output

    server = litserve.LitServer(Api(max_batch_size=32, batch_timeout=0.002), accelerator="cpu",
                                workers_per_device=1)
    server.run(port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    kind, run, port, threads = sys.argv[1:]
    dict(pipeline=with_pipeline, litserve=with_litserve)[kind](run, int(port), int(threads))
