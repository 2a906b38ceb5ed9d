"""What is used on the repository itself, not by the program."""
