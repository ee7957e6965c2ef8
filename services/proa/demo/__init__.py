"""The demos: real processes, real faults, and a report of what each policy did about them."""
