"""A set of images as a set of embeddings: parquet files that `datasets` opens."""
