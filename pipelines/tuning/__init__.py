"""A search for the method and the settings that suit some data."""
