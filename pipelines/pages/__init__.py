"""Pages that show what runs found: one run, or several side by side."""
