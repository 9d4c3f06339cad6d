"""certdrop: a privilege-separated toolkit that gets, renews and rotates certificates for nginx."""

VERSION = "0.1.0"
