"""Models that embed images, of whatever kind: backbones of this package, ONNX files, InsightFace's model packs."""
