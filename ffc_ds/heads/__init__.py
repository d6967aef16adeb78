"""The systems, one file each, behind the contract of `base.py`."""
