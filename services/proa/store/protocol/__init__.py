"""The exact parity protocol, pure: events in, actions out, no I/O and no clock (facts ecrm C5)."""
