"""The dynamic class pool: which identity holds which slot (`index`), and the features of the slots (`storage`)."""
