"""Generated stubs of package proa.api.v1: run `make proto`, never edit."""
