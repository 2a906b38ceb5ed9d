"""The documents say what is so: settings, ids, files, tests and links that they name are there."""
