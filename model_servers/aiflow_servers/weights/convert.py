"""Turns one tflite network into ONNX with a free batch dimension, and proves it.

Run as a script by the interpreter of an environment that has tflite2onnx (see `weights.lock.toml`);
it imports nothing of ours. `convert.py SOURCE RESULT`; exit 1 with one line where the proof fails.
"""

import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import tflite2onnx


def free_batch(model: onnx.ModelProto) -> None:
    """Lets the first dimension be anything: of inputs, outputs and what Reshape nodes ask for."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # carries the old batch of 1; every runtime infers it anew
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}:
        shape = onnx.numpy_helper.to_array(constants[name]).copy()
        # 0 means "as in the input"; where the network left one dimension open already, that stays.
        shape[0] = 0
        constants[name].CopyFrom(onnx.numpy_helper.from_array(shape, name))


def settle_order(model: onnx.ModelProto) -> None:
    """Puts nodes and constants in one order: tflite2onnx's follows object addresses."""
    graph = model.graph
    constants = sorted(graph.initializer, key=lambda tensor: tensor.name)
    waiting = sorted(graph.node, key=lambda node: node.output[0])
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in constants)}
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = next(node for node in waiting if known.issuperset(node.input))
        waiting.remove(ready)
        known.update(ready.output)
        ordered.append(ready)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(constants)
    graph.node.extend(ordered)


def prove(model: onnx.ModelProto) -> None:
    """Checks that a batch of four gives what four batches of one give."""
    evaluator = onnx.reference.ReferenceEvaluator(model)
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    pictures = np.random.default_rng(0).uniform(0, 1, (4, *shape)).astype(np.float32)
    together = evaluator.run(None, {value.name: pictures})
    for index in range(4):
        alone = evaluator.run(None, {value.name: pictures[index : index + 1]})
        for one, all_ in zip(alone, together, strict=True):
            difference = float(np.abs(one[0] - all_[index]).max())
            # Relative, because outputs are pixels in the hundreds, and machines round differently.
            if difference > 1e-4 * max(1.0, float(np.abs(one).max())):
                sys.exit(
                    f"picture {index} of a batch of 4 differs by {difference} from itself alone"
                )


def main(source: Path, result: Path) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # hundreds of lines that would hide the one that matters
    tflite2onnx.convert(str(source), str(result))
    model = onnx.load(result)
    free_batch(model)
    settle_order(model)
    onnx.checker.check_model(model)
    prove(model)
    result.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
