"""Other stream processors, run by bench/.venv."""
