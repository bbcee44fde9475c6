"""Checks that an ONNX graph may be a part of a bundle: it is one file and has the expected inputs and outputs.

Does not read the manifest. The caller gives the expected tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tureen.bundle.graph import GraphFile, TensorInfo, read_graph_file
from tureen.errors import BundleError, GraphFileError, printable

MAX_SHOWN = 4  # tensors or files named in a message


def check_graph(
    file: Path,
    data: bytes,
    *,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    opset: int | None = None,
) -> GraphFile:
    """Returns the description of the ONNX graph in `data` if a bundle may contain the graph.

    inputs, outputs: the expected tensors. The first dimension of each tensor is the batch. It may have any name, but
    must have the same name in all tensors. opset: the expected version of ONNX's own operators; None: any.

    Raises BundleError if `data` is not an ONNX graph, refers to other files, or has another opset, input or output.
    file: the path for the message.
    """
    try:
        graph = read_graph_file(data)
    except GraphFileError as error:
        raise BundleError(f"{file} is not an ONNX graph: {error}; export the model again") from error
    if graph.external_files:
        # A runtime that loads a graph from bytes opens such files relative to its working directory.
        named = ", ".join(printable(name) for name in graph.external_files[:MAX_SHOWN] if name)
        raise BundleError(
            f"{file} refers to data in other files{f' ({named})' if named else ''}, which are never read: "
            "export the model again, as one file"
        )
    batch = _batch_name(graph.inputs[0])
    found = [sorted(tensors, key=str) for tensors in (graph.inputs, graph.outputs)]
    required = [sorted(_with_batch(tensors, batch), key=str) for tensors in (inputs, outputs)]
    if found != required:
        raise BundleError(
            f"{file} computes {_format_tensors(graph.outputs)} from {_format_tensors(graph.inputs)}, "
            f"but the manifest requires {_format_tensors(required[1])} from {_format_tensors(required[0])}: "
            "export the model again"
        )
    if opset not in (None, graph.opsets.get("")):
        raise BundleError(
            f"{file} is of opset {graph.opsets.get('', 'none')}, the manifest says {opset}: export the model again"
        )
    return graph


def _batch_name(tensor: TensorInfo) -> str:
    """Returns the name of the first dimension of a tensor, which is the batch.

    Returns "batch" if that dimension is a fixed number or has no name. `check_graph` then refuses the tensor, because
    the shapes differ.
    """
    first = tensor.shape[0] if tensor.shape else "?"
    return first if isinstance(first, str) and first != "?" else "batch"


def _with_batch(tensors: Sequence[TensorInfo], batch: str) -> list[TensorInfo]:
    return [tensor.model_copy(update={"shape": [batch, *(tensor.shape or [])[1:]]}) for tensor in tensors]


def _format_tensors(tensors: Sequence[TensorInfo]) -> str:
    shown = ", ".join(str(tensor) for tensor in tensors[:MAX_SHOWN])
    return printable(shown if len(tensors) <= MAX_SHOWN else f"{shown} and {len(tensors) - MAX_SHOWN} more")
