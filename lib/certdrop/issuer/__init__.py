"""The issuer: talks to the CA, as _certdrop; never sees a domain key."""
