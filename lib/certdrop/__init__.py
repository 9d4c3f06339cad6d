"""certdrop: a privilege-separated toolkit that gets, renews and rotates certificates for nginx."""

VERSION = "0.1.0"
TERMINAL = "CERTDROP_TERMINAL"     # the environment's: which of 0, 1 and 2 lead to a terminal, by way of another process
