"""Asks a server for a task's answers with tritonclient, and prints them as JSON. Not a test: run by some.

Standard input: {"address": ..., "task": ..., "texts": [...]}. Output: the version that answered, and every tensor.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton


def main() -> None:
    asked = json.load(sys.stdin)
    with triton.InferenceServerClient(asked["address"]) as client:
        [field] = client.get_model_metadata(asked["task"]).inputs
        tensor = triton.InferInput(field.name, [len(asked["texts"])], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in asked["texts"]], dtype=object))
        result = client.infer(asked["task"], [tensor])
    answer = result.get_response()
    outputs = {}
    for output in answer.outputs:
        values = result.as_numpy(output.name)
        assert values is not None
        outputs[output.name] = [each.decode() for each in values] if output.datatype == "BYTES" else values.tolist()
    print(json.dumps({"version": answer.model_version, "outputs": outputs}))


if __name__ == "__main__":
    main()
