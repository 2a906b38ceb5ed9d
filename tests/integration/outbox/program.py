"""`millstream`, as a module that the fleet can start."""

from streams.cli import main

if __name__ == "__main__":
    main()
