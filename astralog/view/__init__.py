"""Reading stored logs: filters, levels, search and the terminal."""
