"""The command `rhapsody`: one module for each subcommand."""
