"""An ONNX model in 8 bits, by ONNX Runtime's static quantization.

Weights are int8 with a scale for each output channel; the inputs of convolutions and matrix
products int8 with one range each, from the least value on training examples to the largest (Jacob
et al. 2018, https://arxiv.org/abs/1712.05877, section 2.1). All else stays float32.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.data.source import Source, permutation

EXAMPLES, BATCH = 256, 32  # that give the ranges
QUANTIZED = ("Conv", "MatMul", "Gemm")

Feed = dict[str, np.ndarray]


def calibration(source: Source, inputs: Sequence[str], batch: int | None) -> list[Feed]:
    """Batches of raw training examples, chosen at random but always the same.

    Args:
      source: of the training split.
      inputs: names of the arrays that the model takes.
      batch: the number of examples that it takes; None for any.
    """
    size = batch or BATCH
    ids = permutation(0, 0, source.size)[:EXAMPLES]
    ids = np.resize(ids, -(-len(ids) // size) * size)
    read = [source.read(some) for some in ids.reshape(-1, size)]
    return [{name: np.asarray(x[name]) for name in inputs} for x in read]


def quantized(content: bytes, batches: Sequence[Feed]) -> bytes:
    """The ONNX model in 8 bits.

    Args:
      content: of the model in float32, as a file has it.
      batches: of inputs by name, on which ranges are measured.
    """
    import onnx
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Feed] = iter(batches)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of how a model should be prepared, which is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, ready, small = (str(Path(folder, name)) for name in ("a", "b", "c"))
            model = onnx.load_model_from_string(content)
            without_scalar_biases(model.graph)
            onnx.save_model(model, whole)
            # Folds what is constant: a transposed kernel is a kernel then.
            quant_pre_process(whole, ready, skip_symbolic_shape=True)
            ort.quantize_static(ready, small, Reader(), per_channel=True,
                                quant_format=ort.QuantFormat.QDQ,
                                activation_type=ort.QuantType.QInt8,
                                weight_type=ort.QuantType.QInt8,
                                op_types_to_quantize=list(QUANTIZED))
            return Path(small).read_bytes()
    finally:
        logging.disable(before)


def without_scalar_biases(graph: Any) -> None:
    """Leaves out the number zero that jax2onnx adds to matrix products: ONNX Runtime would look for
    a number for each channel."""
    from onnx import numpy_helper

    zeros = {t.name: t for t in graph.initializer
             if not t.dims and not numpy_helper.to_array(t).any()}
    for node in graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    used = {name for node in graph.node for name in node.input}
    for name in zeros.keys() - used:
        graph.initializer.remove(zeros[name])
