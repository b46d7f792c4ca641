"""Ask a server with Triton's own client, unmodified: the server speaks the Open Inference Protocol.

python -m demo.ask_triton HOST:PORT TASK TEXT...
"""

import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str, task: str, *texts: str) -> None:
    """Print the label and score of every text."""
    with triton.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata(task)
        assert metadata is not None
        field = metadata.inputs[0].name
        rows = np.array([text.encode() for text in texts], dtype=np.object_)
        tensor = triton.InferInput(field, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(rows)
        result = client.infer(task, [tensor])
    assert result is not None
    labels, scores = result.as_numpy("label"), result.as_numpy("score")
    assert labels is not None
    assert scores is not None
    print(f"    version {result.get_response().model_version} answered")
    for text, label, score in zip(texts, labels, scores, strict=True):
        print(f"    {label.decode()} {score:.4f}  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
