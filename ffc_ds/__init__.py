"""ffc_ds trains identity embeddings on very many identities: a DeepSpeed backbone, a model-parallel class side."""

__version__ = "0.1.0"
