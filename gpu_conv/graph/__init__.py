"""The ONNX runner: parse, fold, fuse, choose the layout, execute, profile."""

try:
    import onnx  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"ONNX models need {error.name}: pip install 'gpu-conv[onnx]'", name=error.name
    ) from error
