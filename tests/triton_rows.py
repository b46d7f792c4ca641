"""Calls a server with tritonclient and prints a task's answers as JSON. A program that some tests run.

Standard input: {"address": ..., "task": ..., "texts": [...]}. Output: the version that answered, and every tensor.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton


def main() -> None:
    request = json.load(sys.stdin)
    with triton.InferenceServerClient(request["address"]) as client:
        [field] = client.get_model_metadata(request["task"]).inputs
        tensor = triton.InferInput(field.name, [len(request["texts"])], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in request["texts"]], dtype=object))
        result = client.infer(request["task"], [tensor])
    response = result.get_response()
    outputs = {}
    for output in response.outputs:
        values = result.as_numpy(output.name)
        assert values is not None
        outputs[output.name] = [value.decode() for value in values] if output.datatype == "BYTES" else values.tolist()
    print(json.dumps({"version": response.model_version, "outputs": outputs}))


if __name__ == "__main__":
    main()
