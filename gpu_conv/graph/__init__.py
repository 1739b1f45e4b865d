"""The ONNX runner: parse, fold, fuse, choose the layout, execute, profile."""
