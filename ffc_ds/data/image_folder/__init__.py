"""Images in files of their own, in a folder for each person: found by what is in the files, opened as a dataset."""
