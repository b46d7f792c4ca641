"""The Open Inference Protocol: its service, its streams, and rows as tensors."""

from serving.api.open_inference.servicer import OpenInferenceServicer

__all__ = ["OpenInferenceServicer"]
