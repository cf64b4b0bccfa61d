"""What must survive the process: agents as last seen, pins, quarantines, histories."""
