"""The embedded mode: every service of proa as a process on loopback, under one supervisor."""
