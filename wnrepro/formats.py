"""Exports a trained model as plain layers, for use without wnrepro. Every file is checked before it is written."""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wnrepro.errors import UserError
from wnrepro.experiments.loop import Exported
from wnrepro.runs.directory import write_atomic

TOLERANCE = 1e-4  # largest difference of an output, relative to the largest output if that is above 1
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
SUFFIX = {"torch": "pt2", "onnx": "onnx", "safetensors": "safetensors"}
Model = Callable[[Tensor], Tensor]


class DifferentError(UserError):
    """An exported model whose outputs are not those of the run's network."""

    exit_code = 1


def require(form: str) -> None:
    """Raise UserError if a package that the format needs is missing."""
    for name in NEEDS.get(form, ()):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"--format {form}: needs {name}; run `pip install 'wnrepro[export]'`") from None


def write_model(exported: Exported, form: str, path: Path, about: dict[str, Any]) -> float:
    """Write a model and return the largest difference of its outputs. about: facts about the run, kept in the file.

    Raises DifferentError, and writes nothing, if the difference is above TOLERANCE.
    """
    exported.model.eval().requires_grad_(False)
    with quiet(), torch.no_grad():
        content = CONTENT[form](exported, {name: str(value) for name, value in about.items()})
        found = load(content, form, exported.model)(exported.inputs)
    difference = (found - exported.expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, exported.expected.abs().max().item()):
        raise DifferentError(
            f"{path}: not written, because its outputs differ from those of the run's network by {difference:.3g}; use "
            "another --format"
        )
    write_atomic(path, content)
    return difference


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' own warnings and logs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def program(exported: Exported) -> Any:
    """Trace the model for any number of inputs."""
    return torch.export.export(
        exported.model, (exported.inputs[:2].clone(),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )


def as_torch(exported: Exported, about: dict[str, str]) -> bytes:
    content = io.BytesIO()
    torch.export.save(program(exported), content, extra_files={"wnrepro.json": json.dumps(about)})
    return content.getvalue()


def as_onnx(exported: Exported, about: dict[str, str]) -> bytes:
    given, found = ([name] for name in exported.names)
    traced = program(exported)
    written: Any = torch.onnx.export(traced, dynamo=True, verbose=False, input_names=given, output_names=found)
    written.model.metadata_props.update(about)
    content: bytes = written.model_proto.SerializeToString()
    return content


def as_safetensors(exported: Exported, about: dict[str, str]) -> bytes:
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in exported.model.state_dict().items()}
    content: bytes = save(tensors, about)
    return content


CONTENT: dict[str, Callable[[Exported, dict[str, str]], bytes]] = {
    "torch": as_torch,
    "onnx": as_onnx,
    "safetensors": as_safetensors,
}


def load(content: bytes, form: str, model: nn.Module) -> Model:
    """Load a file's content; for safetensors into the model's layers."""
    if form == "torch":
        loaded: Model = torch.export.load(io.BytesIO(content)).module()
        return loaded
    if form == "onnx":
        from onnxruntime import InferenceSession

        session = InferenceSession(content, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    from safetensors.torch import load as load_tensors

    for value in model.state_dict().values():
        value.zero_()
    model.load_state_dict(load_tensors(content))
    return model
