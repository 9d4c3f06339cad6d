"""The account's key, in a process of its own."""
