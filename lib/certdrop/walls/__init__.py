"""What a process gives up: users, privileges, what a caller lent it, system calls."""
