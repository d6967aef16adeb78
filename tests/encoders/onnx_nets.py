"""Small ONNX files: nets that multiply all values of an image by a matrix."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

DIM = 4


def matrix(values: int) -> np.ndarray:
    return np.random.default_rng(values).normal(0, values**-0.5, (values, DIM)).astype(np.float32)


def linear_net(
    path: Path, dims=("N", 3, 8, 8), outputs: int = 1, inputs: int = 1, values: int | None = None, names=("Flatten", "")
) -> Path:
    """embeddings = flatten(image) @ matrix. names: of the first nodes."""
    weight = matrix(values or int(np.prod(dims[1:])))
    nodes = [helper.make_node("Flatten", ["image"], ["flat"], name=names[0])]
    nodes += [helper.make_node("MatMul", ["flat", "weight"], [f"out{i}"], name=names[1]) for i in range(outputs)]
    given = [
        helper.make_tensor_value_info("image" if i == 0 else f"image{i}", TensorProto.FLOAT, dims)
        for i in range(inputs)
    ]
    made = [helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, [dims[0], DIM]) for i in range(outputs)]
    graph = helper.make_graph(nodes, "net", given, made, [numpy_helper.from_array(weight, "weight")])
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
