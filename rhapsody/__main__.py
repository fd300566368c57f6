"""The command `rhapsody` as `python -m rhapsody`."""

from rhapsody.command.app import main

if __name__ == "__main__":
    main()
