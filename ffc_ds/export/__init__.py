"""Backbones in and out: folders for the hub, ONNX files, weights of InsightFace."""
