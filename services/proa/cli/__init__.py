"""The command `proa`: parsing and printing only. One module a group of verbs."""
