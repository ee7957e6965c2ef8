"""What every process of proa needs: settings, log, admin port, server, root tasks, faults."""
