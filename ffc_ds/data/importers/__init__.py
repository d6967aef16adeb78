"""From what the field has (RecordIO, image folders, LMDBs, WebDataset tars) to parquet files of undecoded images.

Each source is one function that looks at the source and returns a `Plan`; `shards.write_shards` carries a plan out.
"""
