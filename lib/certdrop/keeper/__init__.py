"""The keeper: owns the domain keys and installs chains, as root; never parses what another principal wrote."""
